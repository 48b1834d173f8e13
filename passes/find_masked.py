"""Find values that hold infinite or extreme entries by construction: masked attention scores and additive masks.

One such entry in a group makes the whole group's codes useless, while in the plain graph exp(-inf) is a harmless 0.
So `find_masked(fw)` follows constants beyond ±1000, far outside of what activations are, through moves, sums and
selections, adds arguments of a softmax or a log-sum-exp to which something was added that is made of the caller's
tensors alone, and the mask arguments of fused attention. What is learned is no mask. Read-only.
"""

from collections.abc import Sequence, Set

import torch
from torch import fx

from fxcompress.passes.ops import MOVES, is_attention, is_predicate, is_random, is_view, op_name

_CARRY = MOVES | frozenset(
    "add sub mul div neg where masked_fill maximum minimum index index_select gather select_scatter slice_scatter "
    "index_put index_add index_fill scatter scatter_add scatter_reduce constant_pad_nd triu tril roll".split()
)
_MAKE = _CARRY | frozenset("log exp rsub pow clamp clamp_min clamp_max".split())
_CONSTANT = frozenset("full full_like zeros zeros_like ones ones_like arange iota scalar_tensor".split())
_ADDS = frozenset("add sub where maximum minimum baddbmm addmm".split())
_EXTREMES = frozenset("full full_like scalar_tensor where masked_fill mul constant_pad_nd scatter index_fill".split())
_SOFTMAXES = frozenset("_softmax softmax _log_softmax log_softmax logsumexp".split())
"""What reads masked scores; Inductor takes them apart, and subtracts the largest first."""
_EXTREME = 1e3
"""Masks are made of -10000, -1e9, the end of the type's range or -inf: any of them spoils its group."""


def find_masked(fw: fx.GraphModule, learned: Set[fx.Node] = frozenset()) -> set[fx.Node]:
    """Nodes of the forward graph whose values must not share a quantization group with others.

    Args:
        fw: a forward or a joint graph.
        learned: those of its inputs that get a gradient.
    """
    found: set[fx.Node] = set()
    given, scores = _given(fw, learned), _scores(fw)
    for node in fw.graph.nodes:
        if node.op != "call_function":
            continue
        carried = any(arg in found for arg in _carried(node))
        if carried or _has_extreme(node) or (node in scores and _adds(node, given)):
            found.add(node)
        if is_attention(node):
            found.update(_mask_arguments(node))
    return found


def learned_inputs(inputs: Sequence[fx.Node], gradients: Sequence[object]) -> set[fx.Node]:
    """Inputs of a forward that get a gradient, if there is one, or None, for each of them."""
    if len(inputs) != len(gradients):
        return set()
    return {node for node, gradient in zip(inputs, gradients, strict=True) if isinstance(gradient, fx.Node)}


def _has_extreme(node: fx.Node) -> bool:
    val = node.meta.get("val")
    if op_name(node) not in _EXTREMES:
        return False
    whole = isinstance(val, torch.Tensor) and not val.dtype.is_floating_point
    return not whole and any(isinstance(arg, (int, float)) and abs(arg) >= _EXTREME for arg in node.args)


def _scores(fw: fx.GraphModule) -> set[fx.Node]:
    """What a softmax reads, as it is or carried on."""
    scores: set[fx.Node] = set()
    for node in reversed(fw.graph.nodes):
        names = {op_name(user) for user in node.users}
        # A largest value that is not subtracted is a pool.
        read = not names.isdisjoint(_SOFTMAXES) or {"amax", "sub"} <= names
        if read or any(user in scores and (op_name(user) in _CARRY or is_view(user)) for user in node.users):
            scores.add(node)
    return scores


def _given(fw: fx.GraphModule, learned: Set[fx.Node]) -> set[fx.Node]:
    """The caller's tensors, and masks made of them and constants: moved, compared, put together, logarithms of a 0."""
    given: set[fx.Node] = set()
    constant: set[fx.Node] = set()
    for node in fw.graph.nodes:
        if node.op == "placeholder" and node not in learned:
            given.add(node)
        if node.op == "get_attr" or op_name(node) in _CONSTANT:
            constant.add(node)
        sources = [source for source in node.all_input_nodes if source not in constant]
        making = node.op == "call_function" and (op_name(node) in _MAKE or is_predicate(node)) and not is_random(node)
        if making and given.issuperset(sources):
            (given if sources else constant).add(node)
    return given


def _carried(node: fx.Node) -> list[fx.Node]:
    """What the result has the extremes of. What a product is added to comes first, what a choice depends on too."""
    if op_name(node) in ("addmm", "baddbmm"):
        return node.all_input_nodes[:1]
    if op_name(node) == "where":
        return [arg for arg in node.args[1:] if isinstance(arg, fx.Node)]
    return node.all_input_nodes if op_name(node) in _CARRY else []


def _adds(node: fx.Node, given: set[fx.Node]) -> bool:
    """Whether a mask may be added; one row that a plain product is added to is a bias."""
    masks = [arg for arg in _carried(node) if arg in given]
    if op_name(node) == "addmm":
        masks = [arg for arg in masks if (val := arg.meta["val"]).dim() == 2 and val.shape[0] != 1]
    return op_name(node) in _ADDS and bool(masks)


def _mask_arguments(node: fx.Node) -> list[fx.Node]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    names = [argument.name for argument in node.target._schema.arguments]
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return [arg for name, arg in given if name in ("attn_mask", "attn_bias", "mask") and isinstance(arg, fx.Node)]
