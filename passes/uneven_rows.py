"""Which values hold rows that may be zero, or far smaller than the rows beside them, by construction.

Class, mask and query tokens are parameters that stand in a sequence beside rows that a product made, and often start
as zeros; a mask over rows leaves zeros, and so does an embedding of the padding. A residual stream carries such rows
on. Read-only.
"""

import torch
from torch import fx

from fxcompress.passes.ops import GEMMS, MOVES, REDUCTIONS, is_random, op_name

_SETS_ROWS = frozenset("index_put select_scatter slice_scatter masked_scatter constant_pad_nd".split())
_KEEPS_ROWS = MOVES | frozenset(
    "add sub neg div native_dropout relu gelu silu tanh getitem gather index index_select".split()
)
_NO_MASK = GEMMS | REDUCTIONS | frozenset("convolution _softmax bernoulli".split())
"""What no mask over rows is computed by; a random one drops rows that a residual stream fills again."""


def is_uneven(source: fx.Node) -> bool:
    """Whether rows of `source`, along its last dimension, may be of another scale than their neighbours."""
    values = [source]
    seen = {source}
    for value in values:
        if _mixes(value):
            return True
        for origin in _rows_of(value):
            if origin not in seen:
                seen.add(origin)
                values.append(origin)
    return False


def _mixes(node: fx.Node) -> bool:
    """Whether the operator itself puts rows of another scale beside others."""
    match op_name(node):
        case "cat":
            return not _is_along_rows(node) and any(_is_given(part) for part in node.all_input_nodes)
        case "embedding":
            return len(node.args) > 2 and isinstance(node.args[2], int) and node.args[2] >= 0
        case "mul" | "where":
            return any(_is_row_mask(operand, node) for operand in node.all_input_nodes)
        case name:
            return name in _SETS_ROWS


def _rows_of(node: fx.Node) -> list[fx.Node]:
    """Operands of which each row is carried on in a row of the result."""
    name = op_name(node)
    if name in _KEEPS_ROWS:
        return node.all_input_nodes
    if name in ("mul", "where"):
        return [operand for operand in node.all_input_nodes if _shape(operand) == _shape(node)]
    return []


def _is_along_rows(cat: fx.Node) -> bool:
    dim = cat.args[1] if len(cat.args) > 1 else 0
    return dim in (-1, len(_shape(cat)) - 1)


def _is_given(node: fx.Node) -> bool:
    """Whether a value is the caller's own, or a constant, but for where it lies."""
    while op_name(node) in MOVES and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return not node.all_input_nodes and not is_random(node)


def _is_row_mask(operand: fx.Node, node: fx.Node) -> bool:
    """Whether `operand` has one number for each of several rows of `node`, which no product or reduction made."""
    while op_name(operand) == "expand" and operand.all_input_nodes:
        (operand,) = operand.all_input_nodes
    shape = _shape(operand)
    if len(shape) < 2 or shape[-1] != "1" or _shape(node)[-1] == "1" or all(size == "1" for size in shape):
        return False
    values = [operand]
    seen = {operand}
    for value in values:
        if is_random(value) or op_name(value) in _NO_MASK:
            return False
        fresh = [origin for origin in value.all_input_nodes if origin not in seen]
        seen.update(fresh)
        values += fresh
    return True


def _shape(node: fx.Node) -> tuple[str, ...]:
    """Sizes as text, which to compare installs no guard on symbolic ones."""
    val = node.meta.get("val")
    return tuple(map(str, val.shape)) if isinstance(val, torch.Tensor) else ()
