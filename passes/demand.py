"""What the backward graph needs of each saved tensor, read off its consumers.

`find_demands(bw, pairs, values)` follows every saved tensor through the values that the backward rebuilds from it to
the operators where it first meets a gradient, and classifies it (`facts.Need`). The class says how an error in the
stored value would spread: not at all (`predicate`, `integer`), into leaf gradients only (`operand`), or into the
gradients of other activations (`propagating`). Read-only.
"""

import operator
from collections.abc import Container, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.facts import Need
from fxcompress.passes.alias import storage_key
from fxcompress.passes.find_lengths import has_length_taken
from fxcompress.passes.find_loss_factors import find_loss_factors
from fxcompress.passes.find_row_numbers import find_row_numbers
from fxcompress.passes.find_saved import SavedPair, is_tangent, placeholders
from fxcompress.passes.find_scales import find_scales
from fxcompress.passes.find_statistics import is_statistic
from fxcompress.passes.logarithms import is_logarithm, is_softmax, saved_norms, unmoved
from fxcompress.passes.ops import (
    GEMMS,
    LEAF_FINISH,
    MOVES,
    PREDICATES,
    PRODUCTS,
    full_name,
    is_attention,
    is_view,
    op_name,
)
from fxcompress.passes.values import Known


@dataclass(frozen=True, slots=True)
class Demand:
    """Why a saved tensor has its need class: the backward operators that consume it."""

    need: Need
    consumers: tuple[str, ...]


COMPARES_ZERO = frozenset({"le", "gt", "eq", "ne", "lt", "ge"})
# Which results of a backward operator depend on which argument: argument position → indices of results.
_TUPLE_DEPENDS: dict[str, dict[int, tuple[int, ...]]] = {
    "convolution_backward": {0: (0, 1, 2), 1: (1,), 2: (0,)},
    "grouped_mm_fallback_backward": {0: (1,), 1: (0,), 3: (0, 1)},
}


def gradient_nodes(bw: fx.GraphModule, saved: set[fx.Node]) -> set[fx.Node]:
    """Nodes whose value depends on a tangent, that is on anything but saved values and constants."""
    found = set(filter(is_tangent, placeholders(bw)))
    if not found:
        found = {
            node for node in placeholders(bw) if node not in saved and isinstance(node.meta.get("val"), torch.Tensor)
        }
    for node in bw.graph.nodes:
        if node.op == "call_function" and any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def reached(
    sources: Iterator[fx.Node] | list[fx.Node], beyond: Container[fx.Node] = ()
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Edges (node, user) over which a change of a source's values can spread, each once, none that leaves `beyond`."""
    stack, seen = list(sources), set[tuple[fx.Node, fx.Node]]()
    while stack:
        node = stack.pop()
        for user in node.users if node not in beyond else ():
            if (node, user) in seen or user.op == "output":
                continue
            seen.add((node, user))
            yield node, user
            stack.extend(_affected(node, user))


def _affected(node: fx.Node, user: fx.Node) -> list[fx.Node]:
    depends = _TUPLE_DEPENDS.get(op_name(user))
    if depends is None:
        return [user]
    results = {i for p, arg in enumerate(user.args) if arg is node for i in depends.get(p, ())}
    return [item for item in user.users if item.target is operator.getitem and item.args[1] in results]


def finishing_nodes(bw: fx.GraphModule) -> set[fx.Node]:
    """Nodes from which every path leads to a graph output through moves and sums only."""
    found: set[fx.Node] = set()
    for node in reversed(bw.graph.nodes):
        if node.op == "call_function" and all(
            user.op == "output" or (user in found and (op_name(user) in LEAF_FINISH or user.target is operator.getitem))
            for user in node.users
        ):
            found.add(node)
    return found


def find_demands(bw: fx.GraphModule, pairs: list[SavedPair], values: Known) -> dict[fx.Node, Demand]:
    """Classify each saved tensor, keyed by its backward placeholder. `values` are the forward graph's facts."""
    gradients = gradient_nodes(bw, {pair.bw for pair in pairs})
    finishing = finishing_nodes(bw)
    known_stats: dict[fx.Node, bool] = {}
    stats = {pair.bw for pair in pairs if is_statistic(pair.fw, known_stats)}
    factors = find_loss_factors(bw, _lossy(pairs) - stats, gradients)
    stats |= find_row_numbers(factors, gradients)
    norms, scales = saved_norms(pairs), find_scales(bw, gradients)
    results = {}
    for pair in pairs:
        known = values.get(pair.fw)
        consumers = tuple(sorted({full_name(user) for node, user in _first_uses(pair.bw) if not is_view(user)}))
        need = _static_need(pair, stats) if not (known and known.finite) else _finite_need(pair)
        if need is None:
            uses = _uses_of(pair.bw, gradients, finishing, norms, scales)
            uses.factor = pair.bw in factors
            uses.probabilities = is_softmax(unmoved(pair.fw))
            uses.logits = uses.logits or has_length_taken(pair.fw)
            need = uses.need(bool(known and known.nonnegative))
        results[pair.bw] = Demand(need, consumers)
    return results


def _lossy(pairs: list[SavedPair]) -> set[fx.Node]:
    """Placeholders of saved values that an error may enter: of those that are no masks, and that no caller holds."""
    if not pairs:
        return set()
    graph = pairs[0].fw.graph
    (end,) = graph.find_nodes(op="output")
    callers = (*graph.find_nodes(op="placeholder"), *end.args[0][: pairs[0].position])
    held = {storage_key(node) for node in callers if isinstance(node, fx.Node)}
    return {pair.bw for pair in pairs if pair.val.is_floating_point() and storage_key(pair.fw) not in held}


def _first_uses(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Uses of `node` or of a view of it."""
    values = [node]
    while values:
        value = values.pop()
        for user in value.users:
            if user.op != "output":
                yield value, user
            if is_view(user):
                values.append(user)


def _finite_need(pair: SavedPair) -> Need:
    return "predicate" if pair.val.dtype is torch.bool else "integer"


def _static_need(pair: SavedPair, stats: set[fx.Node]) -> Need | None:
    if pair.val.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return "other"
    return "statistic" if pair.bw in stats else None


_PERIODIC = frozenset(["sin", "cos"])
"""Of whose argument an error counts against the period, however large the argument is."""


@dataclass(slots=True)
class _Uses:
    """What was seen on the way from one saved tensor to the gradients."""

    leaf_only: bool = True
    asks_zero: bool = False
    attention: bool = False
    logits: bool = False
    probabilities: bool = False
    product: bool = False
    factor: bool = False

    def need(self, nonnegative: bool) -> Need:
        if self.logits:
            return "logits"
        if self.attention:
            return "attention"
        if self.probabilities and not self.product:
            return "logits"
        if self.factor or (self.product and not self.leaf_only):
            return "propagating"
        if not self.product:
            return "derivative"
        return "operand+mask" if self.asks_zero and nonnegative else "operand"


def _uses_of(
    source: fx.Node, gradients: set[fx.Node], finishing: set[fx.Node], norms: set[fx.Node], scales: set[fx.Node]
) -> _Uses:
    """Follow one float tensor to where it meets gradients."""
    uses = _Uses()
    # What leaves a gradient was judged where it was mixed in.
    for node, user in reached([source], gradients):
        name = op_name(user)
        uses.product = uses.product or name in GEMMS or name in ("convolution", "convolution_backward")
        if is_attention(user):
            uses.attention = True
        elif user not in gradients:
            exponent = is_logarithm(user, norms) or user in scales
            uses.logits = uses.logits or name in _PERIODIC or exponent
            zero = name in COMPARES_ZERO and user.args[1:] == (0,) and _only_moved(source, node)
            uses.asks_zero = uses.asks_zero or zero
            uses.leaf_only = uses.leaf_only and (zero or name in MOVES or is_view(user) or name in PREDICATES)
        elif name != "where":
            uses.leaf_only = uses.leaf_only and _is_leaf_product(node, user, finishing)
    return uses


def _only_moved(source: fx.Node, node: fx.Node) -> bool:
    """Whether `node` holds elements of `source` unchanged, so that its zeros are the source's zeros."""
    while node is not source:
        if op_name(node) not in MOVES or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True


def _is_leaf_product(node: fx.Node, user: fx.Node, finishing: set[fx.Node]) -> bool:
    """A product with a gradient whose result goes straight into a leaf gradient."""
    if op_name(user) in _TUPLE_DEPENDS:
        return all(item in finishing for item in _affected(node, user))
    return op_name(user) in PRODUCTS and user in finishing
