"""Which saved values are factors of the whole gradient that a backward begins with, element by element.

From the gradient of a scalar loss to that of the first product's result, the backward multiplies with pointwise
derivatives: a prediction minus its target, the slope of a last activation. All other gradients are made from the
result, so that an error of a factor is one of the whole gradient; that of another derivative reaches the layers before
it alone. The same holds where the loss stands outside of the graph, and the graph is given the gradient of a tensor, if
all of that passes such factors before a product or another graph reads it: the slope of a last tanh, the gates of a
recurrent cell. Where some passes around them, as along a residual stream, they share in it like the layers before, and
so do slopes of a last GELU or SiLU, which are 1 where most of a gradient passes.
Read-only.
"""

from collections.abc import Iterable, Mapping, Set

import torch
from torch import fx

from fxcompress.passes.find_ramps import find_ramps
from fxcompress.passes.follow import follow, joined
from fxcompress.passes.ops import is_pointwise, is_predicate, op_name

_PLACES = frozenset("select_backward slice_backward select_scatter slice_scatter".split())
"""What a gradient of a part becomes one of the whole by, filled up with zeros."""
Sources = Mapping[fx.Node, frozenset[fx.Node]]
"""Saved values that a node is made of, and no gradient."""


def find_loss_factors(bw: fx.GraphModule, sources: Set[fx.Node], gradients: Set[fx.Node]) -> set[fx.Node]:
    """Those of `sources`, placeholders of the backward, that are such factors, or that the backward rebuilds one from.

    Args:
        bw: backward graph.
        sources: those of its placeholders that an error may enter.
        gradients: its nodes that depend on a tangent.
    """
    tangents = {node for node in gradients if node.op == "placeholder"}
    behind = _behind(bw.graph.nodes, sources, gradients)
    found = _reached(bw, set(filter(_is_scalar, tangents)), behind, gradients)
    steep = _behind(bw.graph.nodes, sources, gradients, find_ramps(bw, gradients))
    return found | _reached(bw, tangents & _scaled(bw, steep, gradients), steep, gradients)


def _reached(bw: fx.GraphModule, tangents: Set[fx.Node], behind: Sources, gradients: Set[fx.Node]) -> set[fx.Node]:
    """What the factors are made of that these tangents pass before anything mixes their elements."""
    first, found = set(tangents), set[fx.Node]()
    for node in bw.graph.nodes if first else ():
        inputs = node.all_input_nodes
        carries = node in gradients and node.op != "placeholder" and _carries(node)
        if carries and first.issuperset(arg for arg in inputs if arg in gradients):
            first.add(node)
            found |= frozenset() if _is_summed(node) else joined(behind, node.all_input_nodes)
    return found


def _behind(
    nodes: Iterable[fx.Node], sources: Set[fx.Node], gradients: Set[fx.Node], ramps: Set[fx.Node] = frozenset()
) -> Sources:
    """What each value that is no gradient is made of; answers to comparisons of nothing, since they are kept exact,
    and `ramps` of nothing that counts."""
    behind = {node: frozenset([node]) for node in sources if node not in ramps}
    for node in nodes:
        if node.op == "call_function" and node not in gradients and node not in ramps and not is_predicate(node):
            behind[node] = joined(behind, node.all_input_nodes)
    return behind


def _scaled(bw: fx.GraphModule, behind: Sources, gradients: Set[fx.Node]) -> set[fx.Node]:
    """Gradients of which nothing is read, by whatever mixes elements or by the caller, before it met a factor.

    What a sum makes of them for the caller does not count: a bias has no other gradient.
    """
    found: set[fx.Node] = set()
    for node in reversed(bw.graph.nodes):
        users = [user for user in node.users if not _ends_in_sum(user)] if node in gradients else []
        if users and all(_carries(user) and (user in found or joined(behind, user.all_input_nodes)) for user in users):
            found.add(node)
    return found


def _ends_in_sum(node: fx.Node) -> bool:
    """Whether `node` is a sum that the caller gets, moved at most."""
    if op_name(node) != "sum":
        return False
    return all(_carries(reader) for value in follow([node], _readers) for reader in _readers(value))


def _readers(value: fx.Node) -> list[fx.Node]:
    return [user for user in value.users if user.op != "output"]


def _is_summed(node: fx.Node) -> bool:
    """Whether nothing but sums read it, in which errors of elements cancel."""
    return all(op_name(user) == "sum" for user in node.users)


def _carries(node: fx.Node) -> bool:
    return node.op == "call_function" and (is_pointwise(node) or op_name(node) in _PLACES)


def _is_scalar(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.dim() == 0
