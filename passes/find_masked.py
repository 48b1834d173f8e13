"""Find values that hold infinite or extreme entries by construction: masked attention scores and additive masks.

One such entry in a group makes the whole group's codes useless, while in the plain graph exp(-inf) is a harmless 0. So
`find_masked(fw, learned)` follows constants beyond ±1000, far outside of what activations are, through every operator
that is not known to end them (`keep_extremes`), and with them sums of learned values with what is made of the caller's
tensors alone, if what reads the sum gives -inf a meaning: a softmax or log-sum-exp, or else exp, sigmoid and their
like, where nothing would make NaN of it. The mask arguments of fused attention are such values, too. What is learned is
no mask. Read-only.
"""

from collections.abc import Callable, Sequence, Set

import torch
from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.compat.tracing import stated_number
from fxcompress.passes.alias import hint
from fxcompress.passes.follow import follow
from fxcompress.passes.keep_extremes import BOTH, EXTREME, LOW, NONE, carried, ends, kept, sign_of, squashes
from fxcompress.passes.ops import GEMMS, MOVES, is_attention, is_predicate, is_real, is_square, is_view, op_name

_CARRY = MOVES | frozenset(
    "add sub mul div neg where masked_fill maximum minimum index index_select gather select_scatter slice_scatter "
    "index_put index_add index_fill scatter scatter_add scatter_reduce constant_pad_nd triu tril roll rev cumsum sort "
    "topk".split()
)
_CONSTANT = frozenset("full full_like zeros zeros_like ones ones_like arange iota scalar_tensor eye".split())
_ADDS = frozenset(
    "add sub where maximum minimum baddbmm addmm masked_fill masked_scatter index_put index_fill scatter cat".split()
)
_EXTREMES = frozenset(
    "full full_like scalar_tensor where masked_fill mul add sub rsub constant_pad_nd scatter index_fill".split()
)
_SOFTMAXES = frozenset("_softmax _safe_softmax softmax _log_softmax log_softmax logsumexp".split())
"""What reads masked scores; Inductor takes them apart, and subtracts the largest first."""
_LOGARITHMS = frozenset("logaddexp logcumsumexp log_sigmoid_forward binary_cross_entropy_with_logits".split())
"""Whose derivative is 0 or 1 far below zero, though their result may be as far."""
_COMPARISONS = frozenset("lt le gt ge eq ne isinf isfinite".split())
_SPREADS = GEMMS | frozenset("pow var var_mean".split())
"""What makes NaN of it, or an infinity that means nothing."""
_ALIKE = MOVES | frozenset("add sub mul div neg".split())


def find_masked(fw: fx.GraphModule, learned: Set[fx.Node] = frozenset()) -> set[fx.Node]:
    """Nodes of the forward graph whose values must not share a quantization group with others.

    Args:
        fw: a forward or a joint graph.
        learned: those of its inputs that get a gradient.
    """
    held: dict[fx.Node, int] = {}
    given = _given(fw, learned)
    normalized = _scores(fw, _is_normalized, scaled=True)
    squashed = _scores(fw, _is_squashed, scaled=False) - _spread(fw)
    for node in fw.graph.nodes:
        signs = kept(node, held) | _made(node, given)
        if node.op == "get_attr":
            signs = sign_of(stated_number(getattr(fw, str(node.target), None)))
        masks = _added(node, given) if node in normalized or node in squashed else []
        if node not in normalized:
            masks = [mask for mask in masks if not _is_per_channel(mask, node)]
        signs |= LOW if masks else NONE
        held.update(dict.fromkeys(_behind(masks, given), LOW))
        if signs:
            held[node] = signs
        if is_attention(node):
            held.update(dict.fromkeys(_mask_arguments(node), LOW))
    return {node for node in held if node.op == "call_function"}


def learned_inputs(inputs: Sequence[fx.Node], gradients: Sequence[object]) -> set[fx.Node]:
    """Inputs of a forward that get a gradient, if there is one, or None, for each of them."""
    if len(inputs) != len(gradients):
        return set()
    return {node for node, gradient in zip(inputs, gradients, strict=True) if isinstance(gradient, fx.Node)}


def _made(node: fx.Node, given: Set[fx.Node]) -> int:
    """Signs of the extremes that an operator's own number brings in."""
    if op_name(node) not in _EXTREMES or node.op != "call_function":
        return NONE
    numbers = [arg for arg in node.args if isinstance(arg, (int, float)) and abs(arg) >= EXTREME]
    val = node.meta.get("val")
    if isinstance(val, torch.Tensor) and not val.dtype.is_floating_point:
        numbers = [number for number in numbers if number < 0]  # Others count and index.
    signs = NONE
    for number in numbers:
        signs |= sign_of(-number if op_name(node) == "sub" and number is not node.args[0] else number)
    scaled = op_name(node) == "mul" and not given >= set(node.all_input_nodes)
    return BOTH if signs and scaled else signs


def _scores(fw: fx.GraphModule, is_read: Callable[[fx.Node], bool], *, scaled: bool) -> set[fx.Node]:
    """What is read so, as it is or carried on; `scaled`: also times another tensor, as a normalization's result is."""
    scores: set[fx.Node] = set()
    for node in reversed(fw.graph.nodes):
        carriers = (user for user in node.users if op_name(user) in _CARRY or is_view(user))
        if is_read(node) or any(user in scores and (scaled or not _scales(user)) for user in carriers):
            scores.add(node)
    return scores


def _scales(node: fx.Node) -> bool:
    return op_name(node) in ("mul", "div") and len(node.all_input_nodes) > 1


def _is_normalized(node: fx.Node) -> bool:
    names = {op_name(user) for user in node.users}
    # A largest value that is not subtracted is a pool.
    return not names.isdisjoint(_SOFTMAXES) or {"amax", "sub"} <= names


def _is_squashed(node: fx.Node) -> bool:
    names = {op_name(user) for user in node.users}
    chosen = "where" in names and not names.isdisjoint(_COMPARISONS)
    return chosen or not names.isdisjoint(_LOGARITHMS) or any(squashes(user) for user in node.users)


def _spread(fw: fx.GraphModule) -> set[fx.Node]:
    """What a product of matrices, a normalization or a square reads, as it is, moved or in a sum."""
    found: set[fx.Node] = set()
    for node in reversed(fw.graph.nodes):
        for user in node.users:
            name = op_name(user)
            spreads = name in _SPREADS or "_norm" in name or "convolution" in name or is_square(user)
            if spreads or (user in found and name in _ALIKE):
                found.add(node)
    return found


def _given(fw: fx.GraphModule, learned: Set[fx.Node]) -> set[fx.Node]:
    """The caller's tensors, and what is made of them and constants by what keeps extremes, or makes them."""
    given: set[fx.Node] = set()
    constant: set[fx.Node] = set()
    for node in fw.graph.nodes:
        if node.op == "placeholder" and node not in learned:
            given.add(node)
        if node.op == "get_attr" or op_name(node) in _CONSTANT:
            constant.add(node)
        sources = [source for source in node.all_input_nodes if source not in constant]
        if node.op == "call_function" and _may_make_masks(node) and given.issuperset(sources):
            (given if sources else constant).add(node)
    return given


def _may_make_masks(node: fx.Node) -> bool:
    features = op_name(node) in GEMMS or "embedding" in op_name(node)
    return op_name(node) == "exp" or is_predicate(node) or not (features or ends(node))


def _added(node: fx.Node, given: Set[fx.Node]) -> list[fx.Node]:
    """What may be a mask and is added to something; one row that a plain product is added to is a bias."""
    masks = [arg for arg in carried(node) if arg in given and is_real(arg)]
    if op_name(node) == "addmm":
        masks = [arg for arg in masks if (val := arg.meta["val"]).dim() == 2 and val.shape[0] != 1]
    return masks if op_name(node) in _ADDS and node not in given else []


def _is_per_channel(mask: fx.Node, node: fx.Node) -> bool:
    """One number for each index of a dimension but the last, as statistics and biases of channels are, masks of keys
    not."""
    sizes = [hint(size) for size in mask.meta["val"].shape]
    long = [i - len(sizes) for i, size in enumerate(sizes) if size != 1]
    return len(long) == 1 and long != [-1] and node.meta["val"].dim() > 2


def _behind(masks: list[fx.Node], given: Set[fx.Node]) -> list[fx.Node]:
    """Masks, and what they have their extremes of."""
    return list(follow(masks, lambda node: [arg for arg in carried(node) if arg in given]))


def _mask_arguments(node: fx.Node) -> list[fx.Node]:
    if not isinstance(node.target, OpOverload):
        return []
    names = [argument.name for argument in node.target._schema.arguments]
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return [arg for name, arg in given if name in ("attn_mask", "attn_bias", "mask") and isinstance(arg, fx.Node)]
