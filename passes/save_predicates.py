"""Save yes/no answers exactly, before the values they are asked of become lossy.

The backward re-derives comparisons, signs and masks from saved values. From a lossy value they would come out wrong
where it matters most (a ReLU mask from 8 bit is 6 % of gradient error), so `save_predicates` computes each of them in
the forward, where the value is exact, and saves the answer; a saved value of which only such questions were asked is
then not saved at all. Exact: it moves a computation, and changes none.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.passes.alias import find_storages
from fxcompress.passes.demand import COMPARES_ZERO, gradient_nodes
from fxcompress.passes.find_aligned import find_aligned
from fxcompress.passes.find_amplified import find_amplified
from fxcompress.passes.find_compared import find_compared
from fxcompress.passes.find_densities import find_densities
from fxcompress.passes.find_growing import find_growing
from fxcompress.passes.find_hazards import find_hazards
from fxcompress.passes.find_moments import find_moments
from fxcompress.passes.find_saved import SavedPair, find_saved
from fxcompress.passes.follow import ancestors, follow
from fxcompress.passes.ops import JUMPS, is_predicate, op_name
from fxcompress.passes.splice import drop_unused, refresh_values
from fxcompress.passes.twins import find_twins, read_saved, twin_of

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Saved:
    """What was done: names of new masks, of values no longer saved, and of values that must stay exact, with why."""

    masks: tuple[str, ...]
    dropped: tuple[str, ...]
    exact_only: tuple[tuple[str, str], ...]


def expose_predicates(bw: fx.GraphModule) -> int:
    """Spell the backward of ReLU and other activations with jumps as `where(predicate, …)`; returns how many.

    Bit-equal to PyTorch's kernels. At a NaN input threshold and hardtanh pass the gradient, as PyTorch's scalar kernels
    do; its vectorised CPU kernel of hardtanh gives 0 there.
    """
    count = 0
    for node in list(bw.graph.nodes):
        expand = _EXPANSIONS.get(op_name(node))
        if expand is None:
            continue
        with bw.graph.inserting_before(node):
            template = expand(*node.args)
            new = _emit(bw, template, node)
        node.replace_all_uses_with(new)
        bw.graph.erase_node(node)
        count += 1
    return count


Template = tuple[object, tuple[object, ...]]


def _threshold(grad: fx.Node, x: fx.Node, threshold: float) -> Template:
    return _aten.where.ScalarSelf, ((_aten.le.Scalar, (x, threshold)), 0.0, grad)


def _hardtanh(grad: fx.Node, x: fx.Node, low: float, high: float) -> Template:
    outside = (_aten.logical_or.default, ((_aten.le.Scalar, (x, low)), (_aten.ge.Scalar, (x, high))))
    return _aten.where.ScalarSelf, (outside, 0.0, grad)


def _leaky(grad: fx.Node, x: fx.Node, slope: float, from_result: bool) -> Template:
    return _aten.where.self, ((_aten.gt.Scalar, (x, 0)), grad, (_aten.mul.Scalar, (grad, slope)))


_SIXTH = 0.1666666716337204
"""1/6 in fp32, which PyTorch's kernel uses for fp64 too."""


def _hardsigmoid(grad: fx.Node, x: fx.Node) -> Template:
    inside = (_aten.logical_and.default, ((_aten.gt.Scalar, (x, -3.0)), (_aten.lt.Scalar, (x, 3.0))))
    return _aten.where.ScalarOther, (inside, (_aten.mul.Scalar, (grad, _SIXTH)), 0.0)


def _shrink(grad: fx.Node, x: fx.Node, limit: float) -> Template:
    inside = (_aten.logical_and.default, ((_aten.ge.Scalar, (x, -limit)), (_aten.le.Scalar, (x, limit))))
    return _aten.where.ScalarSelf, (inside, 0.0, grad)


_EXPANSIONS: dict[str, Callable[..., Template]] = {
    "threshold_backward": _threshold,
    "hardtanh_backward": _hardtanh,
    "leaky_relu_backward": _leaky,
    "hardsigmoid_backward": _hardsigmoid,
    "hardshrink_backward": _shrink,
    "softshrink_backward": _shrink,
}


def _emit(gm: fx.GraphModule, template: object, like: fx.Node) -> fx.Node:
    """Build the nodes of a nested `(target, arguments)` template, running it on fake values for the metadata."""
    assert isinstance(template, tuple)
    target, arguments = template
    args = tuple(_emit(gm, arg, like) if isinstance(arg, tuple) else arg for arg in arguments)
    node = gm.graph.call_function(target, args)
    node.meta = {key: value for key, value in like.meta.items() if key != "tensor_meta"}
    refresh_values([node])
    return node


def mask_only(bw: fx.GraphModule, pairs: list[SavedPair]) -> set[fx.Node]:
    """Placeholders of float tensors of which the backward asks nothing but predicates."""
    gradients = gradient_nodes(bw, {pair.bw for pair in pairs})
    floats = [pair.bw for pair in pairs if pair.val.dtype.is_floating_point and pair.bw.users]
    return {source for source in floats if not any(_is_read(value, gradients) for value in follow([source], _unasked))}


def _is_read(value: fx.Node, gradients: set[fx.Node]) -> bool:
    return any(user.op == "output" or user in gradients for user in value.users)


def _unasked(value: fx.Node) -> list[fx.Node]:
    """What is made of a value, answers to predicates aside."""
    return [user for user in value.users if not is_predicate(user)]


def superfluous(fw: fx.GraphModule, bw: fx.GraphModule, pairs: list[SavedPair], num_fwd_outputs: int) -> set[fx.Node]:
    """Placeholders of the storages that need not be saved once predicates are; a mask frees nothing of any other."""
    only = mask_only(bw, pairs)
    free = [storage for storage in find_storages(fw, pairs, num_fwd_outputs) if not storage.held_by]
    groups = [{pair.bw for pair in storage.members} for storage in free]
    return set[fx.Node]().union(*(group for group in groups if group <= only))


def save_predicates(
    fw: fx.GraphModule, bw: fx.GraphModule, lossy: set[str], zero_exact: set[str], num_fwd_outputs: int
) -> Saved:
    """Hoist every predicate that depends on a value in `lossy`, and all that make a saved value superfluous.

    Args:
        fw, bw: the pair, edited in place.
        lossy: names of saved values that may become lossy.
        zero_exact: names among them whose codec will keep zeros exact and positives positive; comparing such a
            non-negative value with 0 stays in the backward.
        num_fwd_outputs: how many forward outputs are the user's.
    """
    pairs = find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)
    only = superfluous(fw, bw, pairs, num_fwd_outputs)
    sources = {pair.bw for pair in pairs if pair.bw.name in lossy} | only
    gradients = gradient_nodes(bw, {pair.bw for pair in pairs})
    exact = find_hazards(bw, sources - only, gradients)
    exact = find_amplified(bw, sources - only, gradients) | exact
    exact = find_growing(bw, pairs, sources - only, gradients) | exact
    exact = find_compared(bw, pairs, sources - only, gradients) | exact
    exact = find_densities(bw, pairs, sources - only, gradients) | exact
    exact = find_aligned(fw, bw, pairs, sources - only, gradients) | exact
    exact = find_moments(fw, bw, pairs, sources - only, gradients) | exact
    sources = {node for node in sources if node.name not in exact}
    asked = _asked(bw, pairs, sources, {p.bw for p in pairs if p.bw.name in zero_exact} - only)
    twins = find_twins(fw, bw, pairs, num_fwd_outputs)
    masks: list[str] = []
    for node in asked:
        reason = f"{op_name(node)} in the backward would jump on a lossy value ({node.name})" if _is_jump(node) else ""
        twin = None if reason else twin_of(twins, node)
        if twin is None:
            for source in ancestors(node) & sources:
                exact[source.name] = reason or f"{node.name} depends on it and cannot be computed in the forward"
            continue
        masks.append(read_saved(twins, node, twin, f"is_{node.name}"))
    dropped = drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    return Saved(tuple(masks), tuple(pair.bw.name for pair in dropped), tuple(sorted(exact.items())))


def _is_jump(node: fx.Node) -> bool:
    val = node.meta.get("val")
    whole = isinstance(val, torch.Tensor) and not (val.dtype.is_floating_point or val.dtype is torch.bool)
    return op_name(node) in JUMPS or whole


def _is_dropout_mask(node: fx.Node) -> bool:
    """The mask of a repeated dropout, which depends on the random state and not on the values."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    made = (node.args[0].target, *node.args[0].args[:2])
    return bool(node.args[1] == 1) and torch.ops.aten.native_dropout.default in made


def _asked(
    bw: fx.GraphModule, pairs: list[SavedPair], sources: set[fx.Node], zero_exact: set[fx.Node]
) -> list[fx.Node]:
    """Predicates and jumps that depend on `sources` and feed anything but another predicate, in graph order."""
    gradients = gradient_nodes(bw, {pair.bw for pair in pairs})
    tainted, found = set(sources), []
    for node in bw.graph.nodes:
        if node.op != "call_function" or node in gradients or _is_dropout_mask(node):
            continue
        if not any(arg in tainted for arg in node.all_input_nodes):
            continue
        if _is_jump(node) or is_predicate(node):
            if op_name(node) in COMPARES_ZERO and node.args[1:] == (0,) and node.args[0] in zero_exact:
                continue
            if _is_jump(node) or any(user in gradients or not is_predicate(user) for user in node.users):
                found.append(node)
            if _is_jump(node):
                continue
        tainted.add(node)
    return found
