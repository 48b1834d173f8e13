"""Memory order: any dense tensor as rows of contiguous elements, and back to its own sizes and strides.

Codecs follow memory, not the logical shape, so that channels_last and transposed tensors are stored without a copy.
Nothing here installs a guard on a symbolic size: what cannot be proved is taken as not dense.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

Size = int | torch.SymInt


@dataclass(frozen=True, slots=True)
class MemoryOrder:
    """How a dense tensor lies in memory.

    Attributes:
        dims: its dimensions from the slowest to the fastest.
        lead: sizes in that order up to the last symbolic one; empty if all are static.
        tail: the static sizes after it, which become one row.
        filled: all sizes in that order where rows end where no dimension need end, filled up with zeros at the end;
            else None.
    """

    dims: tuple[int, ...]
    # What else is compared tells it for one tensor, and comparing symbols would install guards.
    lead: tuple[Size, ...] = field(compare=False)
    tail: tuple[int, ...]
    filled: tuple[Size, ...] | None = None

    @property
    def cols(self) -> int:
        """Elements per row."""
        return math.prod(self.tail)

    @property
    def row(self) -> int:
        """Elements per row where there may be several; 0 where the tensor is one."""
        return self.cols if self.lead else 0

    def ended_at(self, row: int) -> "MemoryOrder | None":
        """The same with rows of the innermost `row` elements, 0: as they are; None if no number of dimensions has so
        many, and static sizes do not end with such a row."""
        for cut in range(len(self.tail) + 1 if row else 0):
            if math.prod(self.tail[cut:]) == row:
                return MemoryOrder(self.dims, (*self.lead, *self.tail[:cut]), self.tail[cut:])
        if row and not self.lead and self.cols % row == 0:
            return self.filling(row)
        return None if row else self

    def filling(self, row: int) -> "MemoryOrder":
        """The same with rows of `row` elements that end where no dimension need end."""
        sizes = (*self.lead, *self.tail)
        return MemoryOrder(self.dims, (_rows_for(math.prod(sizes), row),), (row,), sizes)


def memory_order(x: torch.Tensor) -> MemoryOrder | None:
    """The memory order of `x`, or None if it is not known to fill memory without gaps or overlap."""
    dims = permutation(x.shape, x.stride())
    if not is_dense(x.shape, x.stride()):
        return None
    lead, tail = split([x.shape[dim] for dim in dims])
    return MemoryOrder(dims, lead, tail)


def order_in_rows(x: torch.Tensor, row: int) -> MemoryOrder | None:
    """The memory order of `x`, in rows of `row` elements where its sizes have such; None if it is not dense."""
    order = memory_order(x)
    return order and (order.ended_at(row) or order)


def to_rows(x: torch.Tensor, order: MemoryOrder) -> torch.Tensor:
    """A tensor that lies as `order` says, as `[*lead, cols]`: a view, unless rows are filled up."""
    ordered = x.permute(order.dims)
    if order.filled is not None:
        size = math.prod(ordered.shape)
        rows = _rows_for(size, order.cols)
        flat = ordered.reshape(-1)
        if not _ends_with(size, order.cols):
            flat = torch.constant_pad_nd(flat, [0, rows * order.cols - size])
        return flat.reshape(rows, order.cols)
    return ordered.reshape([*ordered.shape[: len(order.lead)], order.cols])


def _rows_for(size: Size, row: int) -> Size:
    """Rows for `size` elements, which is not known to end with one: one more than are full, since elements may be left
    over, and one that keeps any size from being a single row, about which kernels would install a guard."""
    return size // row if _ends_with(size, row) else size // row + 2


def _ends_with(size: Size, row: int) -> bool:
    return isinstance(size, int) and size % row == 0


def from_rows(rows: torch.Tensor, order: MemoryOrder) -> torch.Tensor:
    """`[*lead, cols]` → a view with the original sizes and strides."""
    back = [0] * len(order.dims)
    for position, dim in enumerate(order.dims):
        back[dim] = position
    if order.filled is not None:
        return rows.reshape(-1)[: math.prod(order.filled)].reshape(order.filled).permute(back)
    return rows.reshape([*rows.shape[:-1], *order.tail]).permute(back)


def permutation(sizes: Sequence[Size], strides: Sequence[Size]) -> tuple[int, ...]:
    """The dimensions by descending stride; equal ones, and those that cannot be compared, in their own order.

    A dimension of size 1 stands behind those of its stride, which gives it back the stride that it had: kernels read
    off it whether a map of one channel has its channels last.
    """
    ones = [dim for dim, size in enumerate(sizes) if statically_known_true(size == 1)]
    order: list[int] = []
    for dim in (dim for dim in range(len(sizes)) if dim not in ones):
        at = len(order)
        while at and statically_known_true(strides[order[at - 1]] < strides[dim]):
            at -= 1
        order.insert(at, dim)
    for one in ones:
        inside = (at for at, dim in enumerate(order) if statically_known_true(strides[dim] < strides[one]))
        order.insert(next(inside, len(order)), one)
    return tuple(order)


def is_dense(sizes: Sequence[Size], strides: Sequence[Size]) -> bool:
    """Whether the elements are known to fill memory without gaps or overlap; strides of size-1 dims do not matter."""
    expected: Size = 1
    for dim in reversed(permutation(sizes, strides)):
        if statically_known_true(sizes[dim] == 1):
            continue
        if not statically_known_true(strides[dim] == expected):
            return False
        expected = expected * sizes[dim]
    return True


def split(sizes: Sequence[Size]) -> tuple[tuple[Size, ...], tuple[int, ...]]:
    """Sizes in memory order, cut after the last symbolic one."""
    static = [size if isinstance(size, int) else size.node.maybe_as_int() for size in sizes]
    cut = max((i + 1 for i, size in enumerate(static) if size is None), default=0)
    return tuple(sizes[:cut]), tuple(size for size in static[cut:] if size is not None)
