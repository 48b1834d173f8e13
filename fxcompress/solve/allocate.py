"""Choose one representation per tensor so that live bytes fit at every moment, at least cost.

The problem: item `i` takes exactly one option `r`, which costs `cost[i][r]` and holds bytes over some ranges of slots;
at each slot the bytes of all items and of the rest must not exceed the limit. `allocate` bounds it from below by its
`relaxation`, makes the relaxation's solution whole by `repair`, and where the two are still apart searches by branch
and bound (Land and Doig 1960), until the choice is proved to cost at most `GAP` more than any other.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from fxcompress.solve.relaxation import Node, Relaxation, relax
from fxcompress.solve.repair import repair
from fxcompress.solve.slots import Items, Merged, cheapest, cost_of, curve_of, merge
from fxcompress.solve.sums import Costs, costs_of

GAP = 0.005
"""Share of the cost that the bound may lie below it."""
NODES = 400
"""Nodes of the search, unless told otherwise; each costs about a millisecond for a hundred items."""
DIVES = 24
"""So many solutions of the search are made whole by repair."""
EXACT_ITEMS = 12
"""Up to so many items with a choice, the solution is proved optimal."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """`chosen[i]` is the option of item i. `bound`: no choice that fits costs less.

    Where nothing was found to fit, that says nothing of `chosen`: `cheapened` bounds what peaks no higher.
    `prices`: what one byte less at a slot would save, in cost, at the slots where it would.
    """

    chosen: tuple[int, ...]
    cost: float
    bound: float
    peak_bytes: int
    fits: bool
    prices: tuple[tuple[int, float], ...] = ()


def allocate(items: Items, rest_bytes: Sequence[int], limit_bytes: int, *, nodes: int = NODES) -> Allocation:
    """Solve for one limit.

    Args:
        items: the options of each item, at least one each.
        rest_bytes: live bytes per slot that no choice changes.
        limit_bytes: what the sum may reach at any slot.
        nodes: how long to search; with 0, a choice is only rounded from the relaxation.

    Returns:
        The cheapest choice found that fits; if none was found, the one with the lowest peak, with `fits` False.
    """
    return _allocated(merge(items, rest_bytes), limit_bytes, [], nodes)


def _allocated(merged: Merged, limit_bytes: int, known: Sequence[list[int]], nodes: int) -> Allocation:
    """Solve for one limit, no worse than by the choices `known`."""
    start = cheapest(merged.items)
    search = _Search(relax(merged.items, merged.rest, limit_bytes), merged.rest)
    search.offer(start)
    lowest, prices = search.cost, {}
    if not search.fits:
        root = search.relaxation.start()
        for chosen in (search.repaired(start), *known):
            search.offer(chosen)
        x = search.relaxation.solve(root)
        prices = search.relaxation.prices(root)
        lowest = max(lowest, search.relaxation.bound(root))
        if x is not None:
            search.offer(search.repaired(search.relaxation.rounded(x)))
            if nodes and lowest < search.enough():
                lowest = search.relaxation.whole_bound(root)
            lowest = search.run(root, x, lowest, nodes)
    found = tuple((merged.tops[slot], price) for slot, price in sorted(prices.items()))
    return Allocation(
        tuple(search.chosen), search.cost, min(lowest, search.cost), search.peak_bytes, search.fits, found
    )


def cheapened(items: Items, rest_bytes: Sequence[int], found: Allocation, *, nodes: int = NODES) -> Allocation:
    """The cheapest choice found that peaks no higher than `found`, which may have been out of reach of its limit.

    It costs as much as `found` or less; `bound`: no choice that peaks no higher costs less.
    """
    merged = merge(items, rest_bytes)
    return _allocated(merged, found.peak_bytes, [list(found.chosen)], nodes)


_Open = tuple[float, int, Node, list[float]]
"""Bound, number, node and its solution."""


@dataclass(slots=True)
class _Search:
    """The best choice so far."""

    relaxation: Relaxation
    rest: Sequence[int]
    chosen: list[int] = field(default_factory=list)
    cost: float = float("inf")
    peak_bytes: int = 0
    fits: bool = False

    def offer(self, chosen: list[int]) -> None:
        """Keep `chosen` if it is the best: what fits before what does not, then the cheapest, then the lowest."""
        peak_bytes = max(curve_of(self.relaxation.items, self.rest, chosen))
        cost, fits = cost_of(self.relaxation.items, chosen), peak_bytes <= self.relaxation.limit
        if not self.chosen or _rank(fits, cost, peak_bytes) < _rank(self.fits, self.cost, self.peak_bytes):
            self.chosen, self.cost, self.peak_bytes, self.fits = chosen, cost, peak_bytes, fits

    def repaired(self, chosen: list[int]) -> list[int]:
        """A choice near `chosen` that fits, if one is found."""
        return repair(self.relaxation.items, self.rest, self.relaxation.limit, chosen)[0]

    def enough(self) -> float:
        """What need not be looked into: bounds from here on are good enough."""
        gap = 0.0 if len({column.item for column in self.relaxation.columns}) <= EXACT_ITEMS else GAP
        return self.cost * (1 - gap) if self.fits else float("inf")

    def run(self, root: Node, x: list[float], bound: float, nodes: int) -> float:
        """Branch on fractions: from the lowest bound down to a whole choice, then again; the lowest bound left."""
        costs, number, dives = self._costs(), 0, 0
        queue: list[_Open] = [(self._lifted(costs, bound), 0, root, x)]
        lowest = float("inf")
        while queue:
            top = heapq.heappop(queue)
            if dives < DIVES:
                self.offer(self.repaired(self.relaxation.rounded(top[3])))
                dives += 1
            following: _Open | None = top
            while following is not None:
                bound, _, node, x = following
                split, following = self.relaxation.split(x), None
                if split is None:
                    self.offer(self.relaxation.rounded(x))
                if split is None or bound >= self.enough() or number >= nodes:
                    lowest = min(lowest, bound)
                    continue
                for taken in (not split.likely, split.likely):
                    number += 1
                    child = node.decided(self.relaxation, split, taken=taken)
                    share = None if child is None else self.relaxation.solve(child)
                    if child is not None and share is not None:
                        if following is not None:
                            heapq.heappush(queue, following)
                        lifted = self._lifted(costs, max(bound, self.relaxation.bound(child)))
                        following = (lifted, number, child, share)
        return lowest

    def _costs(self) -> Costs | None:
        if not self.fits:
            return None
        groups: dict[int, list[float]] = {}
        for column in self.relaxation.columns:
            groups.setdefault(column.item, [0.0]).append(column.cost)
        return costs_of(list(groups.values()), self.cost - cost_of(self.relaxation.items, self.relaxation.base))

    def _lifted(self, costs: Costs | None, bound: float) -> float:
        """`bound` lifted to the next sum of costs that there is."""
        if costs is None:
            return bound
        free = cost_of(self.relaxation.items, self.relaxation.base)
        return max(bound, free + costs.raised(bound - free))


def _rank(fits: bool, cost: float, peak_bytes: int) -> tuple[bool, float, int]:
    return not fits, cost if fits else peak_bytes, peak_bytes
