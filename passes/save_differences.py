"""Save small differences of large values, instead of the values.

The backward of a regression's loss reads prediction minus target. PyTorch saves the prediction and subtracts again;
once the prediction is lossy, its error, a share of the predictions' range, is the difference's, which shrinks as
training goes on until the gradient is nothing but error. So the difference is computed in the forward and saved: its
error is a share of its own range. Exact: it moves a computation, and changes none.
"""

from collections.abc import Iterable, Iterator, Set

import torch
from torch import fx

from fxcompress.passes.alias import nbytes_of
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.follow import ancestors, follow
from fxcompress.passes.ops import op_name
from fxcompress.passes.splice import drop_unused, refresh_values
from fxcompress.passes.twins import find_twins, read_saved, twin_of

_LOSSES = frozenset("mse_loss_backward smooth_l1_loss_backward huber_loss_backward".split())
"""Of (gradient, value, target, …), which read nothing but value minus target."""

_CUTS = frozenset(["detach", "alias"])
"""A detached tensor, as traced, and as Inductor decomposes it; autograd's own are read by the backward alone."""


def save_differences(
    fw: fx.GraphModule, bw: fx.GraphModule, lossy: Set[str], learned: Set[fx.Node], num_fwd_outputs: int
) -> bool:
    """Save differences in place of the values they are taken of, where that saves no more bytes.

    Where other readers need the value too, a difference to what nothing learned enters, such as a target, is saved
    besides.

    Args:
        fw, bw: the pair, edited in place.
        lossy: names of saved values that may become lossy.
        learned: inputs of the forward that get a gradient.
        num_fwd_outputs: how many forward outputs are the user's.

    Returns:
        Whether a graph was edited.
    """
    pairs = find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)
    sources = {pair.bw for pair in pairs if pair.bw.name in lossy}
    gradients = gradient_nodes(bw, {pair.bw for pair in pairs})
    exposed = _expose(bw, _tainted(bw, sources, gradients))
    found = list(_differences(bw, sources, gradients))
    if not found:
        return exposed
    freed = {source for source in sources if _reads_only(source, set(found), gradients)}
    instead = [node for node in found if ancestors(node) & sources <= freed]
    if _nbytes(instead) > _nbytes(freed):
        instead = []
    twins = find_twins(fw, bw, pairs, num_fwd_outputs)
    given = {pair.bw for pair in pairs} - _learned_by(learned, {pair.fw: pair.bw for pair in pairs}, fw)
    for node in found:
        is_residual = bool(learned) and any(_leaves(arg) <= given for arg in node.all_input_nodes)
        twin = twin_of(twins, node) if node in instead or is_residual else None
        if twin is not None:
            read_saved(twins, node, twin, node.name)
    drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    return True


def _tainted(bw: fx.GraphModule, sources: Set[fx.Node], gradients: Set[fx.Node]) -> set[fx.Node]:
    """What depends on a source, and on no gradient."""
    found = set(sources)
    for node in bw.graph.nodes:
        if node.op == "call_function" and node not in gradients and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _expose(bw: fx.GraphModule, tainted: Set[fx.Node]) -> bool:
    """Have the backward of losses, one operator to an interpreter, read a difference; whether there is one."""
    losses = [node for node in bw.graph.nodes if op_name(node) in _LOSSES and not tainted.isdisjoint(node.args[1:3])]
    for node in losses:
        value, target = node.args[1:3]
        with bw.graph.inserting_before(node):
            difference = bw.graph.call_function(torch.ops.aten.sub.Tensor, (value, target))
            like = difference.meta["val"] = value.meta["val"]
            options = {"dtype": like.dtype, "device": like.device}
            zero = bw.graph.call_function(torch.ops.aten.scalar_tensor.default, (0.0,), options)
        refresh_values([difference, zero])
        node.args = (node.args[0], difference, zero, *node.args[3:])
    return bool(losses)


def _differences(bw: fx.GraphModule, sources: Set[fx.Node], gradients: Set[fx.Node]) -> Iterator[fx.Node]:
    """Differences of two whole tensors that depend on a source, none on another, in graph order."""
    tainted = set(sources)
    for node in bw.graph.nodes:
        if node.op != "call_function" or node in gradients or tainted.isdisjoint(node.all_input_nodes):
            continue
        if op_name(node) == "sub" and _is_whole(node):
            yield node
        else:
            tainted.add(node)


def _is_whole(node: fx.Node) -> bool:
    """Whether both operands fill the result: a mean that is subtracted is of its values' own scale."""
    vals = [arg.meta.get("val") if isinstance(arg, fx.Node) else None for arg in (node, *node.args[:2])]
    shapes = {str(tuple(val.shape)) for val in vals if isinstance(val, torch.Tensor) and 0 not in val.stride()}
    tensors = [val for val in vals if isinstance(val, torch.Tensor) and val.dtype.is_floating_point]
    return len(tensors) == 3 and len(shapes) == 1 and not any(0 in val.stride() for val in tensors)


def _reads_only(source: fx.Node, differences: Set[fx.Node], gradients: Set[fx.Node]) -> bool:
    """Whether the backward reads `source` for nothing but `differences`."""
    values = follow([source], lambda value: [user for user in value.users if user not in differences])
    return not any(user.op == "output" or user in gradients for value in values for user in value.users)


def _learned_by(learned: Set[fx.Node], saved: dict[fx.Node, fx.Node], fw: fx.GraphModule) -> set[fx.Node]:
    """Placeholders of saved values that depend on what is learned, other than through what cuts gradients off."""
    reached = set(learned)
    for node in fw.graph.nodes:
        if op_name(node) not in _CUTS and not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return {bw for node, bw in saved.items() if node in reached}


def _leaves(node: fx.Node) -> set[fx.Node]:
    """The placeholders that `node` depends on."""
    return {found for found in ancestors(node) if found.op == "placeholder"}


def _nbytes(nodes: Iterable[fx.Node]) -> int:
    return sum(nbytes_of(node.meta["val"]) for node in nodes)
