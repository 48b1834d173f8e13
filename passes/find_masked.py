"""Find values that hold infinite or extreme entries by construction: masked attention scores and additive masks.

One such entry in a group makes the whole group's codes useless, while in the plain graph exp(-inf) is a harmless 0.
So `find_masked(fw)` follows constants beyond ±1000, far outside of what activations are, through moves, sums and
selections, adds arguments of a softmax or a log-sum-exp to which something was added that is made of the caller's
tensors alone, and the mask arguments of fused attention. Read-only.
"""

import torch
from torch import fx

from fxcompress.passes.ops import MOVES, is_attention, is_predicate, is_view, op_name

_CARRY = MOVES | frozenset(
    "add sub mul div neg where masked_fill maximum minimum index index_select gather select_scatter slice_scatter "
    "index_put scatter triu tril roll".split()
)
_MAKE = _CARRY - {"index", "index_select", "gather"} | {"log"}
_SOFTMAXES = frozenset("_softmax softmax _log_softmax log_softmax logsumexp amax".split())
"""What reads masked scores; Inductor takes a softmax apart, and finds the largest first."""
_EXTREME = 1e3
"""Masks are made of -10000, -1e9, the end of the type's range or -inf: any of them spoils its group."""


def find_masked(fw: fx.GraphModule) -> set[fx.Node]:
    """Nodes of the forward graph whose values must not share a quantization group with others."""
    found: set[fx.Node] = set()
    given, scores = _given(fw), _scores(fw)
    for node in fw.graph.nodes:
        if node.op != "call_function":
            continue
        carried = any(arg in found for arg in _carried(node))
        if carried or _has_extreme(node) or (node in scores and _adds(node, given)):
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


def _scores(fw: fx.GraphModule) -> set[fx.Node]:
    """What a softmax reads, as it is or carried on."""
    scores: set[fx.Node] = set()
    for node in reversed(fw.graph.nodes):
        carrying = (user for user in node.users if op_name(user) in _CARRY or is_view(user))
        if any(op_name(user) in _SOFTMAXES for user in node.users) or any(user in scores for user in carrying):
            scores.add(node)
    return scores


def _given(fw: fx.GraphModule) -> set[fx.Node]:
    """The caller's tensors, and masks made of nothing else: moved, compared, put together, logarithms of a 0.

    What is looked up in a table is a bias.
    """
    given: set[fx.Node] = set()
    for node in fw.graph.nodes:
        making = node.op == "call_function" and (op_name(node) in _MAKE or is_predicate(node))
        if node.op == "placeholder" or (making and node.all_input_nodes and given.issuperset(node.all_input_nodes)):
            given.add(node)
    return given


def _carried(node: fx.Node) -> list[fx.Node]:
    """What the result has the extremes of. What a product is added to comes first."""
    if op_name(node) in ("addmm", "baddbmm"):
        return node.all_input_nodes[:1]
    return node.all_input_nodes if op_name(node) in _CARRY else []


def _adds(node: fx.Node, given: set[fx.Node]) -> bool:
    """Whether a mask may be added; what a plain product is added to is a bias, and that of a batch is attention's."""
    return op_name(node) in ("add", "baddbmm") and any(arg in given for arg in _carried(node))


def _mask_arguments(node: fx.Node) -> list[fx.Node]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    names = [argument.name for argument in node.target._schema.arguments]
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return [arg for name, arg in given if name in ("attn_mask", "attn_bias", "mask") and isinstance(arg, fx.Node)]
