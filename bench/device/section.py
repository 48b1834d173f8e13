"""What a section of the device benchmark is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

Measured = dict[str, Any]
"""What a case found out, JSON-able."""
Cases = Mapping[str, Callable[[], Measured]]
"""By name; nothing is allocated before a case is called."""


class Skipped(Exception):
    """A case cannot be run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is.

    Attributes:
        device: where tensors live.
        inner: the compiler below all variants.
        toy: sizes that a CPU works off in a second.
    """

    device: Literal["cuda", "cpu"]
    inner: Literal["inductor", "aot_eager"]
    toy: bool

    @property
    def place(self) -> torch.device:
        """`device` as torch wants it."""
        return torch.device(self.device)


@dataclass(frozen=True, slots=True)
class Section:
    """Cases of one kind.

    Attributes:
        name: as on the command line.
        title: of its table.
        columns: keys of the rows that the table shows.
        limit_s: when all of it is killed.
        case_s: when the process of a single case is killed; one that runs n cases has n times that long.
        cases: the cases at a scale, the most important first.
        isolated: whether each case gets a process of its own.
        jobs: how many processes run at once; where more than one, cases that time something take turns at it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    limit_s: float
    case_s: float
    cases: Callable[[Scale], Cases]
    isolated: bool = False
    jobs: int = 1


def need_cuda(scale: Scale) -> None:
    """Raise `Skipped` where there is no GPU to run a Triton kernel on."""
    if scale.device != "cuda":
        raise Skipped("Triton kernels need a GPU")
