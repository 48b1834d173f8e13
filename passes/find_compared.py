"""Find saved values of which every pair is compared: the gradient of a distance is a difference, small where it counts.

Losses and kernels on points (chamfer and transport distances, nearest neighbours, MMD, `torch.cdist`) take differences
of all pairs of rows. The backward takes them again, of lossy values: where two points are close, of their errors alone.
Saving the differences instead, as `save_differences` does for a prediction and its target, would take a tensor of
pairs. `find_compared(bw, pairs, sources, gradients)` returns the sources that

- the backward subtracts from another tensor so that the result has more elements than either;
- the forward squares and sums, and adds to a product with itself, |x - y|² as |x|² + |y|² - 2 x·y, or gives to an
  operator that does.

Read-only. The reasons are for the report.
"""

from collections.abc import Iterable, Sequence

from torch import fx

from fxcompress.passes.alias import numel_of
from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.follow import follow, joined
from fxcompress.passes.ops import GEMMS, MOVES, is_real, op_name

_SCALES = frozenset("mul div neg".split())
_SQUARES = frozenset("pow square mul".split())
_DISTANCES = frozenset(["_euclidean_dist", "_cdist_forward", "_pdist_forward"])
_DIFFERENCE = "every pair of its rows is subtracted"
_DISTANCE = "distances of pairs are differences of its squares and products"


def find_compared(
    bw: fx.GraphModule, pairs: Sequence[SavedPair], sources: set[fx.Node], gradients: set[fx.Node]
) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        bw: backward graph.
        pairs: its saved tensors.
        sources: its placeholders that may become lossy.
        gradients: its nodes that depend on a tangent.
    """
    behind = {node: frozenset((node.name,)) for node in sources}
    found: dict[str, str] = {}
    for node in bw.graph.nodes:
        if node.op != "call_function" or node in gradients:
            continue
        behind[node] = joined(behind, node.all_input_nodes)
        if behind[node] and _pairs_up(node):
            found |= {name: f"{_DIFFERENCE} ({node.name})" for name in sorted(behind[node])}
    distances = {pair.fw for pair in pairs if pair.bw in sources and _is_expanded(pair.fw)}
    return found | {pair.bw.name: _DISTANCE for pair in pairs if pair.fw in distances}


def _pairs_up(node: fx.Node) -> bool:
    """Whether a difference of two tensors has more elements than either."""
    operands = node.all_input_nodes
    if op_name(node) != "sub" or len(operands) != 2 or not all(map(is_real, (node, *operands))):
        return False
    return numel_of(node) > max(map(numel_of, operands))


def _is_expanded(value: fx.Node) -> bool:
    """Whether it enters an operator for distances, or its squares, summed by rows, are added to a product with it or
    are one operand with it."""
    plain = _follow([value], added=False)
    if any(op_name(user) in _DISTANCES for node in plain for user in node.users):
        return True
    squared = [user for node in plain for user in node.users if op_name(user) in _SQUARES and _squares(user, node)]
    sums = [user for node in squared for user in node.users if op_name(user) == "sum" and user.meta["val"].dim()]
    lengths = _follow(sums, added=True)
    products = [user for node in plain for user in node.users if op_name(user) in GEMMS] if sums else []
    scaled = _follow(products, added=False)
    added = (user for node in lengths for user in node.users if _adds(user))
    return not plain.isdisjoint(lengths) or any(not scaled.isdisjoint(user.all_input_nodes) for user in added)


def _squares(node: fx.Node, value: fx.Node) -> bool:
    return op_name(node) != "mul" or node.args[:2] == (value, value)


def _follow(starts: Iterable[fx.Node], *, added: bool) -> set[fx.Node]:
    """What holds the elements of `starts`, moved and scaled; if `added`, as terms of sums, too."""

    def further(node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if op_name(user) in MOVES or _scales(user) or (added and _adds(user))]

    return set(follow(starts, further))


def _scales(node: fx.Node) -> bool:
    return op_name(node) in _SCALES and len(node.all_input_nodes) == 1


def _adds(node: fx.Node) -> bool:
    return op_name(node) in ("add", "sub")
