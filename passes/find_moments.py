"""Find saved values of which variances or covariances in windows are taken as differences of means.

Structural similarity and local correlation take `mean(x·y) - mean(x)·mean(y)` in a window around each pixel, the means
by a convolution or an average pool. Their derivative weighs x by its distance from the window's mean, and the
images' parts cancel where the images agree: both are small beside the range of a whole image, which is what an error of
codes is a share of. `find_moments(fw, bw, pairs, sources, gradients)` returns the sources that such products are taken
of, and those that the backward rebuilds what they are taken of from.

Read-only. The reasons are for the report.
"""

from collections.abc import Sequence

import torch
from torch import fx

from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MOVES, is_view, op_name
from fxcompress.passes.rebuilt_from import rebuilt_from

_WINDOWS = frozenset("convolution avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d".split())
_SUMS = frozenset("add sub mul div neg clamp clamp_min relu maximum".split())
"""What is done to means, besides moving them, before they are subtracted."""
_REASON = "variances in windows are differences of its means and those of its squares or products"
Means = frozenset[fx.Node]
"""Windows that take means, as a value holds them."""


def find_moments(
    fw: fx.GraphModule, bw: fx.GraphModule, pairs: Sequence[SavedPair], sources: set[fx.Node], gradients: set[fx.Node]
) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        fw, bw: the pair.
        pairs: its saved tensors.
        sources: placeholders of the backward that may become lossy.
        gradients: nodes of the backward that depend on a tangent.
    """
    return dict.fromkeys(rebuilt_from(bw, pairs, sources, gradients, _compared(fw)), _REASON)


def _compared(fw: fx.GraphModule) -> set[fx.Node]:
    """What is multiplied, and averaged before and after."""
    means: dict[fx.Node, Means] = {}
    squared: dict[fx.Node, Means] = {}
    found: set[fx.Node] = set()
    for node in fw.graph.nodes:
        name, args = op_name(node), node.all_input_nodes
        if name in _WINDOWS:
            means[node] = frozenset([node])
        elif _moves(node) or name in _SUMS or name == "pow":
            held = [means.get(arg, frozenset()) for arg in args]
            products = [squared.get(arg, frozenset()) for arg in args]
            if name in ("add", "sub") and any(products):
                found |= _shared(frozenset[fx.Node]().union(*held), frozenset[fx.Node]().union(*products))
            if _multiplies(node) and all(held):
                squared[node] = frozenset[fx.Node]().union(*held)
                continue
            means[node] = frozenset[fx.Node]().union(*held)
            squared[node] = frozenset[fx.Node]().union(*products)
    return found


def _shared(means: Means, squared: Means) -> set[fx.Node]:
    """Factors of products that `means` are taken of, while the means in `squared` are taken of a factor itself."""
    plain = {part for window in squared for part in _parts(window.args[0])}
    factors = (_factors(part) for window in means for part in _parts(window.args[0]))
    return set[fx.Node]().union(*(parts for parts in factors if not parts.isdisjoint(plain)))


def _factors(product: fx.Node) -> set[fx.Node]:
    return {part for arg in product.all_input_nodes for part in _parts(arg)} if _multiplies(product) else set()


def _multiplies(node: fx.Node) -> bool:
    """Whether it is a square, or a product of two tensors of its own size."""
    if op_name(node) == "pow":
        return node.args[1] in (2, 2.0)
    if op_name(node) != "mul" or not all(isinstance(arg, fx.Node) for arg in node.args[:2]):
        return False
    vals = [arg.meta.get("val") for arg in (node, *node.all_input_nodes)]
    shapes = {str(tuple(val.shape)) if isinstance(val, torch.Tensor) else None for val in vals}
    return len(shapes) == 1 and None not in shapes


def _parts(arg: object) -> set[fx.Node]:
    """The nodes whose elements `arg` holds, moved or cast at most."""
    starts = [arg] if isinstance(arg, fx.Node) else []
    held = follow(starts, lambda node: node.all_input_nodes if _moves(node) else [])
    return {node for node in held if not _moves(node)}


def _moves(node: fx.Node) -> bool:
    """Whether it holds elements of other nodes, moved or cast at most."""
    return (op_name(node) in MOVES or is_view(node)) and bool(node.all_input_nodes)
