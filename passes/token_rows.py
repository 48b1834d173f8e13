"""Which dimensions of a value hold the tokens, operator by operator, and the same operator on a chunk of them.

A value that depends on the logits row by row has the tokens in adjacent dimensions, in row-major order (`Rows`). A
`Family` states for one kind of operator where the tokens of its result lie, how it reads each operand, and how it is
called on a chunk, in which the token dimensions are one. What no family knows raises `Unchunkable`. Read-only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.ops import op_name

Size = int | torch.SymInt
Emit = Callable[..., fx.Node]
"""Records a call in the graph of the chunk: `emit(target, *args, **kwargs)`."""


class Unchunkable(Exception):
    """A value cannot be computed chunk by chunk; the text says why."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens lie in the dimensions first … last - 1. `cut`: of the tokens that a slice has left."""

    first: int
    last: int
    cut: bool = False

    def inner(self, dim: int, rank: int) -> int:
        """Where dimension `dim` of the whole lies in a chunk.

        Raises:
            Unchunkable: it holds tokens.
        """
        dim = dim % rank if rank else 0
        if self.first <= dim < self.last:
            raise Unchunkable("it reads across tokens")
        return dim if dim < self.first else dim - (self.last - self.first - 1)

    def chunk(self, shape: Sequence[Any], size: Any) -> list[Any]:
        """The shape of a chunk of `size` tokens."""
        return [*shape[: self.first], size, *shape[self.last :]]


@dataclass(frozen=True, slots=True)
class Read:
    """How a chunk reads one operand: its rows, or the whole if `rows` is None.

    `ones`: dimensions of size 1 that stand for the tokens and become one. `spread`: some of the token dimensions are
    missing or of size 1, so that the operand is expanded to these token sizes first.
    """

    rows: Rows | None
    ones: tuple[int, int] | None = None
    spread: tuple[Size, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of operator.

    `result(node, operand, rows)` places the tokens of the result; `operands(node, rows)` states how each tensor operand
    is read when the result's tokens lie at `rows`; `emit(call, node, rows, env, size)` computes a chunk, `env` mapping
    operands to their chunks.
    """

    result: Callable[[fx.Node, fx.Node, Rows], Rows]
    operands: Callable[[fx.Node, Rows], dict[fx.Node, Read]]
    emit: Callable[[Emit, fx.Node, Rows, Mapping[fx.Node, fx.Node], Any], fx.Node]
    cheap: bool = True
    """Whether it may be computed in every chunk although the logits are not among its operands."""


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    """The sizes of a tensor; raises `Unchunkable` for everything else."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        raise Unchunkable("it returns several values")
    return tuple(val.shape)


def tensors(node: fx.Node) -> list[fx.Node]:
    """The operands that are tensors, each once."""
    return [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)]


def same(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether two shapes are equal for all values of their symbols."""
    return len(a) == len(b) and all(compat.known_equal(x, y) for x, y in zip(a, b, strict=True))


def strip(rows: Rows, shape: Sequence[Size]) -> Rows:
    """The same tokens without dimensions of size 1 at either end, so that equal layouts compare equal."""
    first, last = rows.first, rows.last
    while last - first > 1 and shape[last - 1] == 1:
        last -= 1
    while last - first > 1 and shape[first] == 1:
        first += 1
    return replace(rows, first=first, last=last)


def mapped(node: fx.Node, env: Mapping[fx.Node, fx.Node]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of `node` with operands replaced by their chunks."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: env[arg])
    return list(args), dict(kwargs)


def aligned(operand: fx.Node, node: fx.Node, rows: Rows) -> Read:
    """How an operand that is broadcast to the result of `node` is read."""
    shape, whole = shape_of(operand), shape_of(node)
    offset = len(whole) - len(shape)
    first, last = rows.first - offset, rows.last - offset
    if last <= 0:
        return Read(None)
    sizes = shape[max(first, 0) : last]
    if first >= 0 and same(sizes, whole[rows.first : rows.last]):
        return Read(replace(rows, first=first, last=last))
    if all(size == 1 for size in sizes):
        return Read(None, ones=(max(first, 0), last) if last - max(first, 0) > 1 else None)
    if any(size != 1 for size in shape[last:]) or rows.cut or first > 0:
        raise Unchunkable("an operand is broadcast over some of the token dimensions")
    return Read(
        replace(rows, first=0, last=rows.last - rows.first), spread=(*whole[rows.first : rows.last], *shape[last:])
    )


def _pointwise_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    offset = len(shape_of(node)) - len(shape_of(operand))
    return replace(rows, first=rows.first + offset, last=rows.last + offset)


def _pointwise_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    return {arg: aligned(arg, node, rows) for arg in tensors(node)}


def _repeat(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    args, kwargs = mapped(node, env)
    return call(node.target, *args, **kwargs)


def static(shape: Sequence[Size], rows: Rows) -> list[Any]:
    """The shape with None for the tokens' sizes; the others must not be symbolic."""
    found = [None if rows.first <= i < rows.last else size for i, size in enumerate(shape)]
    if not all(size is None or isinstance(size, int) for size in found):
        raise Unchunkable("a dimension besides the tokens has a symbolic size")
    return found


def _create(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    return call(node.target, rows.chunk(static(shape_of(node), rows), size), *node.args[1:], **node.kwargs)


def _expand(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    (operand, *_) = tensors(node)
    return call(torch.ops.aten.expand.default, env[operand], rows.chunk(static(shape_of(node), rows), size))


def _view_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    """Find the dimensions of the result that hold the same tokens: what stands before and after them is equal."""
    before, after = shape_of(operand)[: rows.first], shape_of(operand)[rows.last :]
    tokens = math.prod(shape_of(operand)[rows.first : rows.last])
    return _regroup(shape_of(node), before, tokens, after, rows)


def _regroup(shape: Sequence[Size], before: Sequence[Size], tokens: Size, after: Sequence[Size], rows: Rows) -> Rows:
    found = [
        strip(Rows(first, last, rows.cut), shape)
        for first in range(len(shape))
        for last in range(first + 1, len(shape) + 1)
        if same([math.prod(shape[:first])], [math.prod(before)])
        and same([math.prod(shape[first:last])], [tokens])
        and same([math.prod(shape[last:])], [math.prod(after)])
    ]
    if not found:
        raise Unchunkable("a view mixes tokens with other dimensions")
    return found[0]


def _view_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    (operand,) = tensors(node)
    shape = shape_of(node)
    tokens = math.prod(shape[rows.first : rows.last])
    return {operand: Read(_regroup(shape_of(operand), shape[: rows.first], tokens, shape[rows.last :], rows))}


def _view(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    (operand,) = tensors(node)
    inner, whole = env[operand], rows.chunk(static(shape_of(node), rows), size)
    shape = shape_of(inner)
    at = rows.first
    if same([*shape[:at], *shape[at + 1 :]], [*whole[:at], *whole[at + 1 :]]):
        return inner
    return call(torch.ops.aten.reshape.default, inner, whole)


def _permutation(node: fx.Node) -> list[int]:
    """Dimension i of the result is dimension `_permutation[i]` of the operand."""
    (operand,) = tensors(node)
    rank = len(shape_of(operand))
    order = list(range(rank))
    if op_name(node) == "permute":
        return [int(dim) % rank for dim in node.args[1]]  # type: ignore[arg-type, union-attr]
    a, b = (0, 1) if op_name(node) == "t" else (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
    if rank > 1:
        order[a], order[b] = order[b], order[a]
    return order


def _permute_result(node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    first = _permutation(node).index(rows.first)
    found = replace(rows, first=first, last=first + rows.last - rows.first)
    if _permutation(node)[found.first : found.last] != list(range(rows.first, rows.last)):
        raise Unchunkable("token dimensions are taken apart")
    return found


def _permute_operands(node: fx.Node, rows: Rows) -> dict[fx.Node, Read]:
    (operand,) = tensors(node)
    order = _permutation(node)[rows.first : rows.last]
    if order != list(range(order[0], order[0] + len(order))):
        raise Unchunkable("token dimensions are taken apart")
    return {operand: Read(replace(rows, first=order[0], last=order[-1] + 1))}


def _permute(call: Emit, node: fx.Node, rows: Rows, env: Mapping[fx.Node, fx.Node], size: Any) -> fx.Node:
    (operand,) = tensors(node)
    read = _permute_operands(node, rows)[operand].rows
    assert read is not None
    rank = len(shape_of(operand))
    order = [dim for dim in _permutation(node) if not read.first < dim < read.last]
    places = [read.first if dim == read.first else read.inner(dim, rank) for dim in order]
    return call(torch.ops.aten.permute.default, env[operand], places)


POINTWISE = Family(_pointwise_result, _pointwise_operands, _repeat)
CREATE = Family(_pointwise_result, lambda node, rows: {}, _create)
EXPAND = Family(_pointwise_result, _pointwise_operands, _expand)
VIEW = Family(_view_result, _view_operands, _view)
PERMUTE = Family(_permute_result, _permute_operands, _permute)
