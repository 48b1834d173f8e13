"""Slices and their gradients, along tokens and along other dimensions, and what they share with other operators.

Row by row, a slice along the tokens does nothing: rows that it leaves out are not computed (`Rows.cut`). Its gradient
puts rows back among zeros, which likewise are not computed. Read-only.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import fx

from fxcompress.passes.ops import op_name
from fxcompress.passes.token_rows import (
    Emit,
    Family,
    Read,
    Rows,
    Unchunkable,
    aligned,
    mapped,
    same,
    shape_of,
    static,
    tensors,
)

_DIMENSIONS: dict[str, int] = {
    "_log_softmax": 1,
    "_softmax": 1,
    "_log_softmax_backward_data": 2,
    "_softmax_backward_data": 2,
    "gather": 1,
    "scatter": 1,
    "scatter_add": 1,
    "slice": 1,
    "slice_scatter": 2,
    "select": 1,
}
"""Where operators that work along one dimension have its number."""


def along(node: fx.Node, rows: Rows) -> int:
    """The dimension that `node` works along, as it lies in a chunk."""
    (first, *_) = tensors(node)
    place = _DIMENSIONS[op_name(node)]
    dim: Any = node.args[place] if len(node.args) > place else 0
    return rows.inner(int(dim), len(shape_of(first)))


def call_along(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    args, kwargs = mapped(node, env)
    place = _DIMENSIONS[op_name(node)]
    if len(args) > place:
        args[place] = along(node, rows)
    return call(node.target, *args, **kwargs)


def cut_of(node: fx.Node, rows: Rows) -> tuple[int, int, int] | None:
    """What a slice along a token dimension leaves, or its gradient puts back: dimension among the tokens, start, end.

    None if `node` is neither. `rows` are those of the side that has all tokens.

    Raises:
        Unchunkable: it takes every second token, or bounds are symbolic.
    """
    name = op_name(node)
    if name not in ("slice", "slice_scatter", "slice_backward"):
        return None
    args: list[Any] = [*node.args, *(None,) * 6]
    dim, start, end, step = args[1:5] if name == "slice" else args[2:6]
    whole, part = tensors(node)[0] if name == "slice" else node, node if name == "slice" else _source(node)
    dim = int(dim or 0) % len(shape_of(whole))
    if not rows.first <= dim < rows.last or same(shape_of(whole), shape_of(part)):
        return None
    start, end = start or 0, 2**63 - 1 if end is None else end
    if step not in (None, 1) or not (isinstance(start, int) and isinstance(end, int)):
        raise Unchunkable("it takes tokens in a way that is not known")
    return dim - rows.first, start, end


def _slice_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    if cut_of(node, rows) is None:
        return rows
    if rows.cut:
        raise Unchunkable("it slices the tokens a second time")
    return replace(rows, cut=True)


def _slice_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    (operand, *_) = tensors(node)
    whole = replace(rows, cut=False)
    return {operand: Read(whole if rows.cut and cut_of(node, whole) is not None else rows)}


def _slice(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    (operand, *_) = tensors(node)
    if same(shape_of(node)[: rows.first], shape_of(operand)[: rows.first]) and same(
        shape_of(node)[rows.last :], shape_of(operand)[rows.last :]
    ):
        return env[operand]
    return call_along(call, node, rows, env, size)


def _scatters_tokens(node: fx.Node, rows: Rows) -> bool:
    """Whether a `slice_scatter` or `slice_backward` puts the rows that a slice had left back among zeros."""
    dim: Any = node.args[2] if len(node.args) > 2 else 0
    return rows.first <= int(dim) % len(shape_of(node)) < rows.last


def _slice_scatter_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    if not _scatters_tokens(node, rows):
        return rows
    if not rows.cut or operand is not _source(node) or not is_zero(node.args[0]):
        raise Unchunkable("it writes into some of the tokens")
    return replace(rows, cut=False)


def _source(node: fx.Node) -> Any:
    return node.args[0] if op_name(node) == "slice_backward" else node.args[1]


def _slice_scatter_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    if _scatters_tokens(node, rows):
        return {_source(node): Read(replace(rows, cut=True))}
    return {arg: aligned(arg, node, rows) for arg in tensors(node)}


def _slice_scatter(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    return env[_source(node)] if _scatters_tokens(node, rows) else call_along(call, node, rows, env, size)


def _slice_backward_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    if _scatters_tokens(node, rows) and not rows.cut:
        raise Unchunkable("it is the gradient of another slice")
    return replace(rows, cut=False) if _scatters_tokens(node, rows) else rows


def _slice_backward_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    return {_source(node): Read(replace(rows, cut=True) if _scatters_tokens(node, rows) else rows)}


def _slice_backward(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    if _scatters_tokens(node, rows):
        return env[_source(node)]
    (_, _, dim, *bounds), _ = mapped(node, env)
    shape = rows.chunk(static(shape_of(node), rows), size)
    return call(node.target, env[_source(node)], shape, rows.inner(dim, len(shape_of(node))), *bounds)


def is_zero(value: object) -> bool:
    """Whether an argument is the number 0, or a tensor filled with it."""
    if not isinstance(value, fx.Node):
        return isinstance(value, (int, float)) and value == 0
    if op_name(value) in ("zeros", "zeros_like", "new_zeros"):
        return True
    place = 0 if op_name(value) == "scalar_tensor" else 1
    return op_name(value) in ("full", "scalar_tensor", "full_like") and is_zero(value.args[place])


SLICE = Family(_slice_result, _slice_operands, _slice, cheap=False)
SLICE_SCATTER = Family(_slice_scatter_result, _slice_scatter_operands, _slice_scatter, cheap=False)
SLICE_BACKWARD = Family(_slice_backward_result, _slice_backward_operands, _slice_backward, cheap=False)
