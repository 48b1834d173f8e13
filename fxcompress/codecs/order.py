"""Memory order: any dense tensor as rows of contiguous elements, and back to its own sizes and strides.

Codecs follow memory, not the logical shape, so that channels_last and transposed tensors are stored without a copy.
Nothing here installs a guard on a symbolic size: what cannot be proved is taken as not dense.
"""

import math
from collections.abc import Sequence

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

Size = int | torch.SymInt


def permutation(sizes: Sequence[Size], strides: Sequence[Size]) -> tuple[int, ...]:
    """The dimensions by descending stride; equal ones, and those that cannot be compared, in their own order."""
    order: list[int] = []
    for dim in range(len(sizes)):
        at = len(order)
        while at and _inside(order[at - 1], dim, sizes, strides):
            at -= 1
        order.insert(at, dim)
    return tuple(order)


def _inside(inner: int, outer: int, sizes: Sequence[Size], strides: Sequence[Size]) -> bool:
    """Whether `inner` is known to run faster in memory than `outer`."""
    if statically_known_true(sizes[outer] == 1):
        return False
    return statically_known_true(strides[inner] < strides[outer]) or statically_known_true(sizes[inner] == 1)


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


def split(sizes: Sequence[Size]) -> tuple[tuple[Size, ...], int]:
    """Sizes in memory order → (lead, cols): cols is the product of the static sizes after the last symbolic one."""
    first = max((i + 1 for i, size in enumerate(sizes) if not isinstance(size, int)), default=0)
    return tuple(sizes[:first]), math.prod(int(size) for size in sizes[first:])


def to_rows(x: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """A dense tensor as `[*lead, cols]`, a view. `order` is its `permutation`."""
    ordered = x.permute(*order)
    lead, cols = split(ordered.shape)
    return ordered.reshape(*lead, cols)


def from_rows(rows: torch.Tensor, sizes: Sequence[Size], order: Sequence[int]) -> torch.Tensor:
    """`[*lead, cols]` → a view with the original `sizes` and strides (those of size-1 dims are free)."""
    back = [0] * len(order)
    for position, dim in enumerate(order):
        back[dim] = position
    return rows.reshape([sizes[dim] for dim in order]).permute(*back)
