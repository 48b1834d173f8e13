"""Find values that hold infinite or extreme entries by construction: masked attention scores and additive masks.

One such entry in a group makes the whole group's codes useless, while in the plain graph exp(-inf) is a harmless 0.
So `find_masked(fw)` follows constants beyond ±1000, far outside of what activations are, through moves, sums and
selections, adds arguments of a softmax to which a caller's tensor was added, and the mask arguments of fused
attention. Read-only.
"""

import torch
from torch import fx

from fxcompress.passes.ops import MOVES, is_attention, op_name
from fxcompress.passes.same_place import readers_of

_CARRY = MOVES | frozenset(
    "add sub mul div neg where masked_fill maximum minimum index index_select gather select_scatter slice_scatter "
    "index_put scatter triu tril roll".split()
)
_EXTREME = 1e3
"""Masks are made of -10000, -1e9, the end of the type's range or -inf: any of them spoils its group."""


def find_masked(fw: fx.GraphModule) -> set[fx.Node]:
    """Nodes of the forward graph whose values must not share a quantization group with others."""
    found: set[fx.Node] = set()
    for node in fw.graph.nodes:
        if node.op != "call_function":
            continue
        carried = op_name(node) in _CARRY and any(arg in found for arg in node.all_input_nodes)
        if carried or _has_extreme(node) or (op_name(node) == "add" and _feeds_softmax(node) and _adds_input(node)):
            found.add(node)
        if is_attention(node):
            found.update(_mask_arguments(node))
    return found


def _has_extreme(node: fx.Node) -> bool:
    val = node.meta.get("val")
    if op_name(node) not in ("full", "full_like", "scalar_tensor", "where", "masked_fill", "mul"):
        return False
    whole = isinstance(val, torch.Tensor) and not val.dtype.is_floating_point
    return not whole and any(isinstance(arg, (int, float)) and abs(arg) >= _EXTREME for arg in node.args)


def _feeds_softmax(node: fx.Node) -> bool:
    return any(op_name(reader) in ("_softmax", "softmax", "amax") for reader in readers_of(node))


def _adds_input(node: fx.Node) -> bool:
    return any(_is_moved_input(arg) for arg in node.all_input_nodes)


def _is_moved_input(node: fx.Node) -> bool:
    while node.op == "call_function" and op_name(node) in MOVES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


def _mask_arguments(node: fx.Node) -> list[fx.Node]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    names = [argument.name for argument in node.target._schema.arguments]
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return [arg for name, arg in given if name in ("attn_mask", "attn_bias", "mask") and isinstance(arg, fx.Node)]
