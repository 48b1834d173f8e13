"""PyTorch's own cut of a joint graph: what a plan is compared with.

`torch_cut(cut, …)` makes it, `plain_step(cut, …)` says what a step under it needs, and `plain_partition` is it as a
partitioner. Nothing is rewritten.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxcompress import compat
from fxcompress.cut_to_budget import Cutter
from fxcompress.facts import Peak
from fxcompress.passes.cut_within import saved_nbytes
from fxcompress.passes.find_channels_last import find_channels_last
from fxcompress.passes.liveness import Machine, find_peak


@dataclass(frozen=True, slots=True)
class PlainStep:
    """What the step saves in bytes, and its predicted peak."""

    saved_bytes: int
    peak: Peak


def torch_cut(cut: Cutter) -> tuple[compat.Partition, int]:
    """PyTorch's default cut, and the bytes that it saves; 0 if it did not ask what to save."""
    plain: list[int] = []

    def choose(joint: fx.Graph, info: compat.NodeInfo, torch_choice: Callable[[bool], list[fx.Node]]) -> list[fx.Node]:
        default = torch_choice(False)
        plain.append(saved_nbytes(default))
        return default

    with compat.choosing_saved_values(choose):
        pair = cut(rebuild_more=False)
    return pair, plain[0] if plain else 0


def plain_step(cut: Cutter, inner: str, num_fwd_outputs: int) -> PlainStep:
    """What a step needs under PyTorch's default cut, run by the inner compiler `inner`."""
    (fw, bw), saved = torch_cut(cut)
    return PlainStep(saved, find_peak(fw, bw, num_fwd_outputs, machine_of(fw, inner)))


def plain_partition(
    gm: fx.GraphModule,
    joint_inputs: Sequence[object],
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> compat.Partition:
    """PyTorch's default cut as a partitioner."""
    cut = functools.partial(
        compat.partition,
        gm,
        joint_inputs,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_indices=static_lifetime_input_indices,
    )
    return torch_cut(cut)[0]


def machine_of(fw: fx.GraphModule, inner: str) -> Machine:
    """How the inner compiler `inner` runs the pair that `fw` is the forward of."""
    fused = inner == "inductor"
    return Machine(fused, fused and bool(find_channels_last(fw)))
