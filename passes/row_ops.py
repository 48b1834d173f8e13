"""The operators that work row by row on logits, and those that sum over the tokens: the registry of `Family`s.

`family(node)` is the one entrance; `sums_tokens(node, labels)` recognizes sums and products over the tokens, whose
results are added up over chunks. Read-only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.passes.ops import op_name
from fxcompress.passes.row_slices import SLICE, SLICE_BACKWARD, SLICE_SCATTER, along, call_along
from fxcompress.passes.token_rows import (
    CREATE,
    EXPAND,
    PERMUTE,
    POINTWISE,
    VIEW,
    Emit,
    Family,
    Read,
    Rows,
    Unchunkable,
    mapped,
    same,
    shape_of,
    tensors,
)

_REDUCTIONS = frozenset("sum amax amin argmax argmin logsumexp any all prod mean".split())
_ALONG = frozenset(
    "_log_softmax _softmax _log_softmax_backward_data _softmax_backward_data gather scatter scatter_add".split()
)
_CREATIONS = frozenset("full zeros ones empty".split())
_CONSTANTS = _CREATIONS | {"scalar_tensor", "iota", "arange"}
_VIEWS = frozenset("view _unsafe_view reshape squeeze unsqueeze flatten".split())
_ELEMENTWISE = frozenset("convert_element_type _to_copy detach alias clone contiguous zeros_like ones_like".split())


@dataclass(frozen=True, slots=True)
class TokenSum:
    """A node that sums over the tokens, and how a chunk reads its operands."""

    node: fx.Node
    operands: tuple[tuple[fx.Node, Read], ...]


def is_same_in_chunks(node: fx.Node, read: Read) -> bool:
    """Whether `node` makes a tensor of numbers that the graph states, and each chunk reads the whole of it."""
    stated = node.op == "call_function" and op_name(node) in _CONSTANTS and not node.all_input_nodes
    return stated and read.rows is None and read.ones is None


def family(node: fx.Node) -> Family:
    """The family of a call.

    Raises:
        Unchunkable: no family knows the operator.
    """
    name = op_name(node)
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        raise Unchunkable("it is no operator on rows")
    found = _named(name)
    if found is not None:
        return found
    if torch.Tag.pointwise in node.target.tags or name in _ELEMENTWISE:
        return POINTWISE
    raise Unchunkable("it is no operator on rows")


def _named(name: str) -> Family | None:
    if name in _VIEWS:
        return VIEW
    if name in _REDUCTIONS:
        return REDUCE
    if name in _ALONG:
        return ALONG
    return _OTHERS.get(name)


def sums_tokens(node: fx.Node, labels: Mapping[fx.Node, Rows]) -> TokenSum | None:
    """What `node` sums over all tokens, if it does; `labels` are the rows of its operands that are known."""
    name = op_name(node)
    if name == "mm":
        return _product_over_tokens(node, labels)
    if name != "sum":
        return None
    (operand,) = tensors(node)
    rows, rank = labels[operand], len(shape_of(operand))
    dims = {dim % rank for dim in reduced_dims(node, rank)}
    return TokenSum(node, ((operand, Read(rows)),)) if set(range(rows.first, rows.last)) <= dims else None


def _product_over_tokens(node: fx.Node, labels: Mapping[fx.Node, Rows]) -> TokenSum | None:
    left, right = node.args[:2]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    a, b = labels.get(left), labels.get(right)
    cut = (a or b or Rows(0, 1)).cut
    over_left, over_right = Rows(1, 2, cut), Rows(0, 1, cut)
    if (a in (None, over_left)) and (b in (None, over_right)) and (a or b):
        return TokenSum(node, ((left, Read(over_left)), (right, Read(over_right))))
    return None


def reduced_dims(node: fx.Node, rank: int) -> list[int]:
    """The dimensions that a reduction reduces."""
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or given == []:
        return list(range(rank))
    return [int(dim) for dim in given] if isinstance(given, (list, tuple)) else [int(given)]


def keeps(node: fx.Node) -> bool:
    """Whether a reduction keeps its dimensions with size 1."""
    return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))


def _reduced_before(node: fx.Node, rows: Rows, rank: int) -> int:
    """How many dimensions before the tokens disappear."""
    dims = {dim % rank for dim in reduced_dims(node, rank)}
    if dims & set(range(rows.first, rows.last)):
        raise Unchunkable("it reduces over tokens")
    return 0 if keeps(node) else sum(dim < rows.first for dim in dims)


def _reduce_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    shift = _reduced_before(node, rows, len(shape_of(operand)))
    return replace(rows, first=rows.first - shift, last=rows.last - shift)


def _reduce_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    (operand,) = tensors(node)
    rank = len(shape_of(operand))
    reduced = {dim % rank for dim in reduced_dims(node, rank)}
    for first in range(rank - (rows.last - rows.first) + 1):
        found = replace(rows, first=first, last=first + rows.last - rows.first)
        if not reduced & set(range(found.first, found.last)) and _reduce_result(node, operand, found) == rows:
            return {operand: Read(found)}
    raise Unchunkable("it reduces over tokens")


def _reduce(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    (operand,) = tensors(node)
    read = _reduce_operands(node, rows)[operand].rows
    assert read is not None
    rank = len(shape_of(operand))
    dims = [read.inner(dim, rank) for dim in reduced_dims(node, rank)]
    listed = isinstance(node.args[1], (list, tuple))
    args, kwargs = mapped(node, env)
    return call(node.target, args[0], dims if listed else dims[0], *args[2:], **kwargs)


def _same_rows(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    along(node, rows)
    return rows


def _along_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    for operand in tensors(node):
        if not same(shape_of(operand)[rows.first : rows.last], shape_of(node)[rows.first : rows.last]):
            raise Unchunkable("an operand has other rows")
    return {operand: Read(rows) for operand in tensors(node)}


def _mm_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    if operand is not node.args[0] or (rows.first, rows.last) != (0, 1):
        raise Unchunkable("it is a product over tokens")
    return rows


def _mm_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    left, right = node.args[:2]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    return {left: Read(rows), right: Read(None)}


REDUCE = Family(_reduce_result, _reduce_operands, _reduce)
ALONG = Family(_same_rows, _along_operands, call_along)
_REPEAT = POINTWISE.emit
_OTHERS: dict[str, Family] = {
    "expand": EXPAND,
    "permute": PERMUTE,
    "transpose": PERMUTE,
    "t": PERMUTE,
    **{name: CREATE for name in _CREATIONS},
    "slice": SLICE,
    "slice_scatter": SLICE_SCATTER,
    "slice_backward": SLICE_BACKWARD,
    "mm": Family(_mm_result, _mm_operands, _REPEAT, cheap=False),
}
