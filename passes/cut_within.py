"""Choose where to cut a joint graph so that the predicted peak fits a limit, at the least modelled time.

`cut_within(gm, …)` tries PyTorch's own cuts, at its memory budgets too, and ours (`find_cuts`): at a range of prices
per byte; at two of them, the dearer one for what is made first; at prices per moment, taken from where a cut so far has
no room left; and, where nothing fits, cuts that differ from the best in one value. Each is fitted by `estimate_cut`,
and the cuts are ranked: those that fit by their seconds, then the others by their peak. Read-only.
"""

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import fx

from fxcompress import compat
from fxcompress.options import Options
from fxcompress.passes.alias import nbytes_of
from fxcompress.passes.estimate_cut import OWN, REBUILT, Cut, Estimate, Model, make_model, saved_nbytes
from fxcompress.passes.find_cuts import CutNetwork, Way, build_network, tensor_of
from fxcompress.passes.liveness import Machine
from fxcompress.passes.price_moments import Moments, price_moments
from fxcompress.passes.redraws import draws_again
from fxcompress.passes.store_sums import find_sums
from fxcompress.solve.allocate import Allocation

PRICES = tuple(4.0**exponent for exponent in (-1, 0, -2, 1, -3, 2, -4, 3, 4, 5))
"""Prices per byte tried, in units of the step's time over the bytes that PyTorch's cut saves; the likeliest first."""
WORK = 60_000
"""Cuts of ours tried, times nodes of the graph."""
FEWEST = 4
"""Cuts of ours tried on graphs of more than `MOST_NODES`."""
MEMORY_BUDGETS = (0.75, 0.5, 0.25)
"""PyTorch's own memory budgets tried."""
MOST_NODES = 6000
"""On larger graphs those are not tried: PyTorch's partitioner takes seconds for each."""
REFINEMENTS = 3
"""Times that prices are halved beside the best one."""
BISECTIONS = 4
"""Places tried where the dearer of two prices ends."""
ROUNDS = 6
"""Rounds of prices per moment."""
BEST = 3
"""So many cuts are surely ranked right; what cannot be among them is not looked into."""
LOWER = 0.75
"""Of the limit, what cuts are made for, too: what keeps it with room to spare may cost less than what just does."""
MOMENT_PRICES = (0.5, 2.0, 8.0)
"""Prices of the moments of a peak, in units of `PRICES`, where nothing fits."""
Cost = Callable[[fx.Node, Way], float]


@dataclass(frozen=True, slots=True)
class Tried:
    """A cut with its estimate and how that was fitted."""

    cut: Cut
    estimate: Estimate
    fitted: Allocation


@dataclass(frozen=True, slots=True)
class Cuts:
    """The cuts tried, the best first; what PyTorch's saves, its peak, unencoded, and what it recomputes; modelled
    seconds of the step, and of an error per byte."""

    ranked: tuple[Cut, ...]
    plain_saved_bytes: int
    plain_peak_bytes: int
    plain_recompute_s: float
    step_s: float
    error_s_per_byte: float
    bound_at: tuple[str, ...] = ()
    """Where less memory would make the best cut cheaper: steps by their first node."""


def cut_within(
    gm: fx.GraphModule,
    info: compat.NodeInfo,
    torch_choice: compat.TorchChoice,
    options: Options,
    limit_of: Callable[[int], int],
    num_fwd_outputs: int,
    machine: Machine,
) -> Cuts:
    """Rank the cuts of a joint graph.

    Args:
        gm: the joint graph.
        info: PyTorch's classification of its nodes.
        torch_choice: what PyTorch saves.
        options: widths and floor of what may be encoded.
        limit_of: the limit in bytes, from the predicted peak of PyTorch's own cut.
        num_fwd_outputs: how many outputs of the joint graph are the user's.
        machine: how the graphs will be run.
    """
    plain = torch_choice(rebuild_more=False)
    model = make_model(gm, plain, options, num_fwd_outputs, machine)
    first = model.sketch(OWN, plain).estimate()
    before = first.peak_kept()
    if machine.ends_rows:
        unordered = replace(model, machine=replace(machine, ends_rows=False))
        before = unordered.sketch(OWN, plain).estimate().peak_kept()
    if machine.fused and "store_sums" not in options.disable_passes:
        sums = find_sums(gm.graph, model.gradients)
        model = replace(model, stored=frozenset(sums))
        first = model.sketch(OWN, plain).estimate() if sums else first
    limit, base_s = limit_of(before), first.sketch.recompute_s
    own = _fitted(first, limit, base_s)
    small = len(gm.graph.nodes) <= MOST_NODES
    count = WORK // len(gm.graph.nodes) if small else FEWEST
    search = _Search(model, limit, base_s, own, own, {frozenset(plain): own.cut}, count, {})
    search.try_cut(REBUILT, torch_choice(rebuild_more=True))
    once = compat.recompute_rules(gm.graph, info).fixed if small else frozenset()
    if small and not gm.graph.find_nodes(op="get_attr"):  # PyTorch times operators by their values; graphs have none
        for budget in MEMORY_BUDGETS:
            saved = torch_choice(rebuild_more=False, memory_budget=budget)
            if not draws_again(model.sketch("", saved), once):
                search.try_cut(f"PyTorch's at a memory budget of {budget:g}", saved)
    try:
        network = build_network(gm.graph, info, model.ways(), model.seconds)
        unit = model.step_s / max(_plain_nbytes(plain), 1)
        search.try_prices(network, own, unit)
        if not machine.fused:
            # Interpreted codecs are so dear that no one price pays for many; where nothing else fits, they must be.
            like = make_model(gm, plain, options, num_fwd_outputs, Machine(True))
            compiled = build_network(gm.graph, info, like.ways(), like.seconds)
            search.try_bytes(compiled, like.step_s / max(_plain_nbytes(plain), 1), ", priced as if compiled")
        if small and search.best.cut.seconds > 0:
            lower = int(LOWER * limit)
            start = _fitted(first, lower, base_s)
            other = _Search(model, lower, base_s, start, start, {frozenset(plain): start.cut}, count, search.estimates)
            other.try_prices(network, start, unit)
            for cut in other.found.values():
                search.try_cut(cut.name, cut.saved)
        if small and not search.best.cut.fits:
            search.left = count
            search.descend(network, once)
    except ValueError:
        pass  # Symbolic sizes and opaque values are PyTorch's to place.
    ranked = tuple(sorted(search.found.values(), key=_rank))
    names = search.best.estimate.lifetimes.names
    bound_at = tuple(names[slot] for slot, _ in search.best.fitted.prices)
    return Cuts(ranked, saved_nbytes(plain), before, base_s, model.step_s, model.error_s_per_byte, bound_at)


def _plain_nbytes(plain: Sequence[fx.Node]) -> int:
    return sum(nbytes_of(val) for node in plain if (val := tensor_of(node)) is not None)


def _rank(cut: Cut) -> tuple[bool, float]:
    return not cut.fits, cut.seconds if cut.fits else float(cut.lowest_peak_bytes)


def _beside_best(tried: Mapping[float, Cut | None]) -> list[tuple[float, float]]:
    """The best price with the next lower one, and with the next higher one."""
    prices = sorted(tried)
    known = [(cut, price) for price in prices if (cut := tried[price]) is not None]
    best = min(known, key=lambda item: _rank(item[0]), default=(None, prices[0]))[1]
    return [(low, high) for low, high in pairwise(prices) if best in (low, high)]


def _fitted(estimate: Estimate, limit_bytes: int, base_s: float) -> Tried:
    fitted, sketch = estimate.fit(limit_bytes), estimate.sketch
    extra_s = sketch.recompute_s - base_s
    cut = Cut(sketch.name, sketch.saved, estimate.lowest_peak(), extra_s, fitted.cost, fitted.fits)
    return Tried(cut, estimate, fitted)


@dataclass(slots=True)
class _Search:
    """The cuts tried so far, by what they save; the best of them and the last."""

    model: Model
    limit_bytes: int
    base_s: float
    best: Tried
    last: Tried
    found: dict[frozenset[fx.Node], Cut]
    left: int
    """How many cuts may still be made."""
    estimates: dict[frozenset[fx.Node], Estimate]
    """Of cuts that were looked into, for this limit or another."""

    def try_own(self, name: str, cut: Callable[[], list[fx.Node]]) -> Cut | None:
        """Make and evaluate a cut; None also where none is left to make."""
        self.left -= 1
        return self.try_cut(name, cut()) if self.left >= 0 else None

    def try_cut(self, name: str, saved: Sequence[fx.Node]) -> Cut | None:
        """Evaluate a cut; None where `BEST` others cost less than its recomputing alone."""
        known = self.found.get(frozenset(saved))
        if known is not None:
            return known
        sketch = self.model.sketch(name, saved)
        better = sum(cut.fits and cut.seconds <= sketch.recompute_s - self.base_s for cut in self.found.values())
        if better >= BEST:
            return None
        key = frozenset(saved)
        if key not in self.estimates:
            self.estimates[key] = sketch.estimate()
        self.last = _fitted(self.estimates[key], self.limit_bytes, self.base_s)
        self.found[key] = self.last.cut
        if _rank(self.last.cut) < _rank(self.best.cut):
            self.best = self.last
        return self.last.cut

    def try_prices(self, network: CutNetwork, own: Tried, unit: float) -> None:
        """Our cuts; `own` is PyTorch's, and `unit` a price of 1, in seconds per byte."""
        moment = price_moments(own.estimate, [(own.estimate.peak_slot(own.fitted.chosen), unit)])
        self.try_bytes(network, unit, "")
        self._sweep(
            network, " at the peak", lambda price: lambda node, way: way.seconds + price * moment.holding_s(node, way)
        )
        self._by_moment(network, unit)

    def try_bytes(self, network: CutNetwork, unit: float, label: str) -> None:
        """Cuts at one price for every byte; `unit` is a price of 1."""
        self._sweep(network, label, lambda price: lambda node, way: way.seconds + unit * price * way.nbytes)

    def _sweep(self, network: CutNetwork, label: str, cost_at: Callable[[float], Cost]) -> None:
        """Cut at a range of prices, then at finer ones beside the best, then at two of them."""

        def try_price(price: float) -> Cut | None:
            return self.try_own(f"ours at {price:.3g}{label}", lambda: network.cut(cost_at(price)))

        tried = {price: try_price(price) for price in PRICES}
        for _ in range(REFINEMENTS):
            for low, high in _beside_best(tried):
                middle = (low * high) ** 0.5
                tried[middle] = try_price(middle)
        for low, high in _beside_best(tried):
            self._between(network, f"ours at {low:.3g}{label}, {{:.0%}} at {high:.3g}", cost_at(low), cost_at(high))

    def _between(self, network: CutNetwork, name: str, cheap: Cost, dear: Cost) -> None:
        """Let what is made first pay the higher price: it is computed again last, when the memory is free."""
        nodes = [node for node in self.model.joint.nodes if node.op == "call_function"]
        place = {node: i / len(nodes) for i, node in enumerate(nodes)}
        share, step = 0.25, 0.125
        for _ in range(BISECTIONS):

            def cost(node: fx.Node, way: Way, share: float = share) -> float:
                return (dear if place.get(node, 0.0) < share else cheap)(node, way)

            cut = self.try_own(name.format(share), functools.partial(network.cut, cost))
            share += -step if cut is None or cut.fits else step
            step /= 2

    def _by_moment(self, network: CutNetwork, unit: float) -> None:
        """Price the moments at which a cut is short, and cut by the mean of the prices so far."""
        for price in MOMENT_PRICES:
            if self.best.cut.seconds > 0 or not self.best.cut.fits:
                self._rounds(network, f"ours at {price:g} by moment", unit * price)
        if self.best.cut.fits:
            self._rounds(network, "ours by bound moments", None)

    def descend(self, network: CutNetwork, once: Set[fx.Node]) -> None:
        """Save, or compute again, one value more or less of those alive at the peak, as long as the peak falls."""
        lowered = True
        while lowered and not self.best.cut.fits:
            lowered, start = False, self.best
            saved = set(start.cut.saved)
            slot = start.estimate.peak_slot(start.fitted.chosen)
            moment = price_moments(start.estimate, [(slot, 1.0)])
            alive = {node: moment.again_s(node) for node in network.saving if node.op == "call_function"}
            for node in sorted((node for node in alive if alive[node]), key=lambda node: -alive[node]):
                cut = self.model.with_inputs(saved ^ {node})
                if not draws_again(self.model.sketch("", cut), once):
                    name = f"{start.cut.name}, {node.name} {'again' if node in saved else 'saved'}"
                    self.try_own(name, functools.partial(list, cut))
                if self.best is not start:
                    lowered = True
                    break

    def _rounds(self, network: CutNetwork, name: str, price: float | None) -> None:
        """Cut at prices of the last cut's peak; without a `price`, of the moments at which the best cut is bound."""
        moments: list[Moments] = []
        current = self.best
        for number in range(ROUNDS):
            fitted = current.fitted
            peak = [] if price is None else [(current.estimate.peak_slot(fitted.chosen), price)]
            moments.append(price_moments(current.estimate, peak or fitted.prices))
            self.try_own(f"{name}, round {number + 1}", functools.partial(_cut_by, network, moments))
            current = self.best if price is None else self.last


def _cut_by(network: CutNetwork, moments: Sequence[Moments]) -> list[fx.Node]:
    """The cut at the mean of several prices of moments."""
    share = 1 / len(moments)
    return network.cut(
        lambda node, way: way.seconds + share * sum(item.holding_s(node, way) for item in moments),
        lambda node: share * sum(item.again_s(node) for item in moments),
    )
