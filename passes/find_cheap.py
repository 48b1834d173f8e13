"""Products of the caller's tensors that cost less to compute again than to keep, among the values that a cut saves.

A first convolution over few channels does a handful of operations per byte of its result: less than writing the result
encoded and reading it back. PyTorch's partitioner never computes a product twice, whatever it costs. Read-only.
"""

import math
from collections.abc import Iterable

import torch
from torch import fx

from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MOVES, op_name

FLOPS_PER_BYTE = 8
"""Of the result, at most. A CPU core does about as many in the time that a byte takes from memory, a GPU more."""
_FACTORS = {"convolution": 1, "mm": 1, "bmm": 1, "addmm": 2}
"""Which argument the products are summed along the last but one dimension of; a convolution's filters."""


def find_cheap(saved: Iterable[fx.Node]) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Cheap products among `saved`, each with the placeholders of the joint graph that it is computed from."""
    found = {node: _origins(node) for node in saved if 0 < _flops_per_element(node) <= _most_flops(node)}
    return {node: origins for node, origins in found.items() if origins}


def _most_flops(node: fx.Node) -> int:
    val: torch.Tensor = node.meta["val"]
    return FLOPS_PER_BYTE * val.element_size()


def _flops_per_element(node: fx.Node) -> int:
    """A multiplication and an addition per term; 0 for what is no product, and where sizes are symbols."""
    position = _FACTORS.get(op_name(node))
    if position is None:
        return 0
    factor = node.args[position]
    assert isinstance(factor, fx.Node)
    shape: torch.Size = factor.meta["val"].shape
    if op_name(node) != "convolution":
        terms = shape[-2:-1]
    else:
        transposed = node.args[6]
        terms = torch.Size() if transposed else shape[1:]
    return 2 * math.prod(terms) if terms and all(isinstance(size, int) for size in terms) else 0


def _origins(node: fx.Node) -> tuple[fx.Node, ...]:
    """The placeholders behind a product's arguments, if nothing but moves and casts lies between; else none."""
    behind = list(follow(node.all_input_nodes, _moved))
    plain = all(each.op == "placeholder" or op_name(each) in MOVES for each in behind)
    return tuple(each for each in behind if each.op == "placeholder") if plain else ()


def _moved(node: fx.Node) -> list[fx.Node]:
    return node.all_input_nodes if op_name(node) in MOVES else []
