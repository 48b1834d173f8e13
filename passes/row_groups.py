"""How many elements may share a scale where a normalization reads a tensor row by row, and where rows then end.

A normalization gives rows of any size the same one, and its backward divides by theirs. A row that shares a scale with
a larger one decodes to an error of that one's size, which grows by as much: a row of zeros, such as a class token
before training or the result of a masked position, has a standard deviation of nothing but eps; and the row beside an
attention sink is a hundred times smaller. So groups end where rows do, and so do those of what such rows are computed
from, which the gradient behind the division is multiplied with. Images are rows of convolutions (`find_images`).
Read-only.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import fx

from fxcompress.codecs.base import Codec
from fxcompress.codecs.order import MemoryOrder
from fxcompress.passes.find_images import image_width
from fxcompress.passes.find_row_norms import normalizes_rows
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MAY_COPY, MOVES, is_view, op_name

WHOLE = 128
"""Elements of the codecs' own groups."""
_SMALLEST = 16
"""Elements of a group below which metadata would outweigh codes, and no codec takes fewer."""
_LEAST_POWER = 32
"""From here on groups are a power of two, which kernels take."""
_METADATA = 8
"""Elements of 4 bits that take as much as a group's metadata."""
_LITTLE = 1.15
"""How many times as much images may take in groups that end with them as they would in groups that do not."""
_ZERO_AT_ZERO = frozenset("mul div neg gelu silu relu tanh erf native_dropout where".split())


def row_group(source: fx.Node | None, order: MemoryOrder | None) -> int:
    """Elements per group so that rows that are normalized do not share one; 0 where groups may be of any size.

    Where no group divides rows, codecs are to see each row by itself: `end_at_rows`.

    Args:
        source: what is to be stored, a forward node.
        order: how it lies in memory; None if it is not dense.
    """
    if source is None or order is None:
        return 0
    width = row_width(source, order)
    if not width:
        return _image_group(image_width(source, order))
    if width % WHOLE == 0:
        return 0
    group = math.gcd(width, WHOLE)
    if group >= _LEAST_POWER:
        return group
    sizes = range(_SMALLEST, WHOLE + 1, _SMALLEST)
    dividing = [size for size in sizes if width % size == 0]
    if dividing:
        return max(dividing)
    return min(sizes, key=lambda size: _room(width, size)) if order.ended_at(width) else 0


def row_width(source: fx.Node, order: MemoryOrder) -> int:
    """Elements of the rows of `source` that a normalization reads; 0 if none reads any that lie in one piece."""
    rows = _in_rows(source)
    width = _row_of(rows) if rows is not None else 0
    return width if rows is not None and width and order.cols % width == 0 and _is_normalized(rows) else 0


def end_at_rows(source: fx.Node, order: MemoryOrder, codec: Codec) -> MemoryOrder:
    """The memory order in which `codec` sees each normalized row, or image, by itself, if its groups would not end
    there else."""
    group = codec.period
    if codec.contract.kind == "exact" or not group:
        return order
    width = row_width(source, order)
    if not width:
        width = image_width(source, order)
    elif group != row_group(source, order):
        return order
    return (order.ended_at(width) if width % group else None) or order


def _image_group(width: int) -> int:
    """Elements per group of images of `width` elements; 0 where groups of any size cost little more than they would."""
    if _room(width, WHOLE) <= _LITTLE * width * (1 + _METADATA / WHOLE):
        return 0
    return min(range(_SMALLEST, WHOLE + 1, _SMALLEST), key=lambda size: _room(width, size))


def _room(width: int, group: int) -> float:
    """What a row takes in groups of `group` elements, in elements."""
    return -(-width // group) * (group + _METADATA)


def _in_rows(source: fx.Node) -> fx.Node | None:
    """`source`, or the nearest view of it, whose last dimension is contiguous; a map with channels last is viewed as
    tokens."""

    def further(value: fx.Node) -> list[fx.Node]:
        return [user for user in value.users if is_view(user) and op_name(user) not in MAY_COPY]

    return next(filter(_lies_in_rows, follow([source], further)), None)


def _is_normalized(source: fx.Node) -> bool:
    """Whether a normalization reads rows of the size of those in `source`: they themselves, what is made of them, or
    sums with that. The last token of a padding predicts the first one behind it: all its terms are rows of zeros."""
    made = _carried([source], _carries_zeros)
    return any(map(_is_read_normalized, (*made, *_carried(made, _carries_terms))))


def _is_read_normalized(value: fx.Node) -> bool:
    return any(map(normalizes_rows, value.users))


def _carried(sources: Sequence[fx.Node], carries: Callable[[fx.Node, fx.Node], bool]) -> list[fx.Node]:
    """`sources` and what their rows come to be."""

    def further(value: fx.Node) -> list[fx.Node]:
        return [user for user in value.users if carries(user, value) and _lies_in_rows(user)]

    return list(follow(sources, further))


def _lies_in_rows(node: fx.Node) -> bool:
    """Whether the last dimension is contiguous: rows along channels that lie apart end in no group of their own."""
    val = node.meta.get("val")
    return not isinstance(val, torch.Tensor) or val.dim() == 0 or str(val.stride(-1)) == "1"


def _carries_zeros(node: fx.Node, value: fx.Node) -> bool:
    """Whether a row of zeros in `value` makes one of the result."""
    return _is_row_product(node, value) or _keeps_elements(node)


def _carries_terms(node: fx.Node, value: fx.Node) -> bool:
    """Whether each row of the result is a sum with the row of `value` in it, as along a residual stream."""
    name = op_name(node)
    return (name in ("add", "sub", "native_dropout") or name in MOVES) and _width(node) == _width(value)


def _row_of(source: fx.Node) -> int:
    """Elements of a row, as what computes with it sees it; views may split rows, as heads do."""
    seen = follow([source], lambda value: [user for user in value.users if _keeps_elements(user)])
    widths = (_width(v) for v in seen for user in v.users if _is_row_product(user, v) or normalizes_rows(user))
    return max([_width(source), *widths])


def _keeps_elements(node: fx.Node) -> bool:
    return is_view(node) or op_name(node) in MOVES or op_name(node) in _ZERO_AT_ZERO


def _is_row_product(node: fx.Node, rows: fx.Node) -> bool:
    """Whether `node` is a product that sums along the rows of its first operand, `rows`."""
    return op_name(node) in ("mm", "bmm") and node.args[0] is rows


def _width(node: fx.Node) -> int:
    """Elements of a row; 0 if that is no static number."""
    val = node.meta.get("val")
    size = val.shape[-1] if isinstance(val, torch.Tensor) and val.dim() > 1 else 0
    return size if isinstance(size, int) else 0
