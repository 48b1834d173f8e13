"""Which saved values are factors of the gradient with which a backward begins, element by element.

From the gradient of a scalar loss to that of the first product's result, the backward multiplies with pointwise
derivatives: a prediction minus its target, the slope of a last activation. All other gradients are made from the
result, so that an error of a factor is one of the whole gradient; that of another derivative reaches the layers before
it alone. Read-only.
"""

from collections.abc import Set

import torch
from torch import fx

from fxcompress.passes.ops import is_pointwise


def find_loss_factors(bw: fx.GraphModule, sources: Set[fx.Node], gradients: Set[fx.Node]) -> set[fx.Node]:
    """Those of `sources`, placeholders of the backward, that are such factors, or that the backward rebuilds one from.

    `gradients` are its nodes that depend on a tangent.
    """
    behind = {node: frozenset([node]) for node in sources}
    first = {node for node in gradients if node.op == "placeholder" and _is_scalar(node)}
    found: set[fx.Node] = set()
    for node in bw.graph.nodes if first else ():
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs:
            continue
        reached = frozenset[fx.Node]().union(*(behind.get(arg, frozenset()) for arg in inputs))
        if node not in gradients:
            behind[node] = reached
        elif is_pointwise(node) and first.issuperset(arg for arg in inputs if arg in gradients):
            first.add(node)
            found |= reached
    return found


def _is_scalar(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.dim() == 0
