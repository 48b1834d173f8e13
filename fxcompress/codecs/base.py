"""What a codec is: one storage format, its exact byte count, and one statement about its error.

A codec instance is a frozen dataclass whose fields are its whole configuration, so that `name` plus `asdict` is what a
plan file stores and `make(name, **params)` brings back. It sees a tensor as `[*lead, cols]`, where the last
axis is contiguous in memory and has a static size; bringing a tensor to that form is `codecs.order`'s business.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

ErrorKind = Literal["exact", "unbiased", "bounded", "contractive"]


@dataclass(frozen=True, slots=True)
class Contract:
    """What holds between a finite `x` and its decode.

    `exact`: bit-equal. `unbiased`: E[decode] = x over the rounding noise, |error| ≤ one step. `bounded`: |error| ≤
    bound·m or ≤ absolute, whichever is larger, m the largest magnitude of the group. `contractive`: ‖error‖ ≤ bound·‖x‖
    with bound < 1. What does not apply is 0; an absolute bound that is known only at run time is infinite.
    """

    kind: ErrorKind
    bound: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True, slots=True)
class Field:
    """One payload tensor of shape `[*lead, *shape]` (static `shape`), contiguous."""

    name: str
    shape: tuple[int, ...]
    dtype: "torch.dtype"

    def nbytes(self, rows: int) -> int:
        return rows * math.prod(self.shape) * self.dtype.itemsize


class Codec(Protocol):
    """A storage format for one tensor saved for backward."""

    @property
    def name(self) -> str: ...

    @property
    def contract(self) -> Contract: ...

    @property
    def bits(self) -> float:
        """Bits per code, without metadata."""

    @property
    def period(self) -> int:
        """Rows of whole multiples of so many elements are stored as rows of so many would be; 0: no row is."""

    def refuse(self, dtype: "torch.dtype") -> str:
        """Why tensors of this dtype cannot be stored; empty if they can."""

    def fields(self, cols: int, dtype: "torch.dtype") -> tuple[Field, ...]:
        """The payload of one row of `cols` elements."""

    def encode(self, x: "torch.Tensor", salt: "int | torch.Tensor") -> tuple["torch.Tensor", ...]:
        """`[*lead, cols]` → payload tensors as `fields` states. `salt` names the tensor in the noise."""

    def decode(self, parts: tuple["torch.Tensor", ...], cols: int, dtype: "torch.dtype") -> "torch.Tensor":
        """Payload → `[*lead, cols]` of `dtype`."""


def payload_nbytes(codec: Codec, rows: int, cols: int, dtype: "torch.dtype") -> int:
    """Exact payload bytes of a `[rows, cols]` tensor, without allocator rounding."""
    return sum(field.nbytes(rows) for field in codec.fields(cols, dtype))
