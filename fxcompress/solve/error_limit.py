"""Choose one representation per tensor so that the gradient's error stays below a limit, at least cost.

Errors are squared and add up, as those of independent roundings do. `cheapest` minimises a cost that adds up too: it
follows the lower convex hulls of cost against error from the most exact choice on, fills what is left of the limit, and
states how much cheaper any choice could be by the linear relaxation. `within_peak` minimises a cost where bytes must
fit at every moment as well: `allocate` solves that for each price of error, and the price is found by bisection.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from fxcompress.solve.allocate import Allocation, allocate
from fxcompress.solve.slots import Option

SEARCHED = 50_000
"""Nodes of the search tree after which a choice is taken as it is; up to a few dozen items it is proved optimal."""
_ROUNDS = 10
"""Halvings of the price of error, after it has been found to within a factor of 4."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to hold an item; `error` is the square that it adds."""

    cost: float
    error: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """`chosen[i]` is the way of item i. `bound`: no choice within the limit costs less. `lowest`: the least error that
    any choice has."""

    chosen: tuple[int, ...]
    cost: float
    error: float
    bound: float
    lowest: float

    @property
    def fits(self) -> bool:
        """Whether the limit can be kept at all; if not, `chosen` is the most exact choice."""
        return math.isfinite(self.bound)


Ways = Sequence[Sequence[Way]]


def cheapest(items: Ways, limit: float) -> Chosen:
    """Ways of least total cost whose errors sum to `limit` at most.

    Args:
        items: the ways of each item, at least one each; costs and errors are not negative.
        limit: of the sum of squared errors.
    """
    now = [min(range(len(ways)), key=lambda r: (ways[r].error, ways[r].cost)) for ways in items]
    lowest = _error(items, now)
    if lowest > limit:
        return Chosen(tuple(now), _cost(items, now), lowest, math.inf, lowest)
    price, slack = 0.0, (limit - lowest) * (1 - 1e-12)
    for gain, i, r in sorted((move for k, ways in enumerate(items) for move in _hull(k, ways)), reverse=True):
        added = items[i][r].error - items[i][now[i]].error
        if added <= slack:
            now[i], slack = r, slack - added
        else:
            price = max(price, gain)  # the first move that does not fit has the highest gain of all that do not
    bound = _relaxed(items, price) - price * limit
    _fill(items, now, slack)
    now, proved = _branch(items, limit, price, now)
    bound = _cost(items, now) if proved else bound
    return Chosen(tuple(now), _cost(items, now), _error(items, now), min(bound, _cost(items, now)), lowest)


def _hull(i: int, ways: Sequence[Way]) -> list[tuple[float, int, int]]:
    """Moves along the lower convex hull of cost against error: cost saved per error added, item, way moved to."""
    order = sorted(range(len(ways)), key=lambda r: (ways[r].error, ways[r].cost))
    hull = order[:1]
    for r in order[1:]:
        if ways[r].cost >= ways[hull[-1]].cost:
            continue
        while len(hull) > 1 and _gain(ways[hull[-2]], ways[hull[-1]]) <= _gain(ways[hull[-1]], ways[r]):
            hull.pop()
        hull.append(r)
    return [(_gain(ways[a], ways[b]), i, b) for a, b in pairwise(hull)]


def _gain(now: Way, then: Way) -> float:
    added = then.error - now.error
    return (now.cost - then.cost) / added if added > 0 else math.inf


def _fill(items: Ways, now: list[int], slack: float) -> None:
    """Give each item a cheaper way where the slack allows it, the largest savings first."""
    moves = [
        (way.cost - items[i][now[i]].cost, i, r)
        for i, ways in enumerate(items)
        for r, way in enumerate(ways)
        if way.cost < items[i][now[i]].cost
    ]
    for _, i, r in sorted(moves):
        added = items[i][r].error - items[i][now[i]].error
        if items[i][r].cost < items[i][now[i]].cost and added <= slack:
            now[i], slack = r, slack - added


def _branch(items: Ways, limit: float, price: float, now: Sequence[int]) -> tuple[list[int], bool]:
    """Search all choices that the priced bound does not rule out, the items with most to lose first.

    Returns:
        The best choice found, and whether the search came to its end.
    """

    def priced(way: Way) -> float:
        return way.cost + price * way.error

    order = sorted(range(len(items)), key=lambda i: min(map(priced, items[i])) - max(map(priced, items[i])))
    ahead = [*accumulate((min(map(priced, items[i])) for i in reversed(order)), initial=-price * limit)][::-1]
    least = [*accumulate((min(way.error for way in items[i]) for i in reversed(order)), initial=0.0)][::-1]
    ranked = [sorted(range(len(items[i])), key=lambda r: priced(items[i][r])) for i in order]
    best, best_cost, left = list(now), _cost(items, now), SEARCHED
    chosen = list(now)
    stack = [(0, 0, 0.0, 0.0)]  # depth, rank of the next way there, cost and error of what is decided above
    while stack and left:
        depth, rank, cost, error = stack.pop()
        if depth == len(order):
            if cost < best_cost and _error(items, chosen) <= limit:
                best, best_cost = list(chosen), cost
            continue
        ways, i = ranked[depth], order[depth]
        if rank + 1 < len(ways):
            stack.append((depth, rank + 1, cost, error))
        way = items[i][ways[rank]]
        left -= 1
        cost, error = cost + way.cost, error + way.error
        if cost + price * error + ahead[depth + 1] < best_cost * (1 - 1e-12) and error + least[depth + 1] <= limit:
            chosen[i] = ways[rank]
            stack.append((depth + 1, 0, cost, error))
        elif cost + price * error + ahead[depth + 1] >= best_cost and rank + 1 < len(ways):
            stack.pop()  # ways that follow are dearer still
    return best, not stack


def _relaxed(items: Ways, price: float) -> float:
    return sum(min(way.cost + price * way.error for way in ways) for ways in items)


def _cost(items: Ways, chosen: Sequence[int]) -> float:
    return math.fsum(ways[r].cost for ways, r in zip(items, chosen, strict=True))


def _error(items: Ways, chosen: Sequence[int]) -> float:
    return math.fsum(ways[r].error for ways, r in zip(items, chosen, strict=True))


def within_peak(
    items: Sequence[Sequence[Option]],
    errors: Sequence[Sequence[float]],
    rest_bytes: Sequence[int],
    limit_bytes: int,
    limit: float,
) -> tuple[Allocation, Chosen]:
    """Options of least cost whose bytes fit at every moment and whose squared errors sum to `limit` at most.

    Args:
        items, rest_bytes, limit_bytes: as for `allocate`.
        errors: the squared error of every option.
        limit: of the sum of squared errors.

    Returns:
        The allocation, with `fits` for the bytes, and the choice with `fits` for the errors. Where the errors do not
        fit, it is the choice of least error found whose bytes do.
    """
    found = allocate(items, rest_bytes, limit_bytes)
    ways = [
        [Way(o.cost, e) for o, e in zip(options, own, strict=True)] for options, own in zip(items, errors, strict=True)
    ]
    if not found.fits or _error(ways, found.chosen) <= limit:
        return found, _judged(ways, found, found.bound, limit)
    exact = _at_price(ways, items, rest_bytes, limit_bytes, math.inf)
    lowest = _error(ways, exact.chosen)
    if lowest > limit:
        return exact, _judged(ways, exact, math.inf, limit)
    best, bound = exact, found.bound
    low, high = 0.0, math.inf
    price = max(_cost(ways, exact.chosen) - found.cost, 1e-30) / max(_error(ways, found.chosen) - lowest, 1e-300)
    for _ in range(4 * _ROUNDS):
        tried = _at_price(ways, items, rest_bytes, limit_bytes, price)
        bound = max(bound, tried.bound - price * limit)
        if tried.fits and _error(ways, tried.chosen) <= limit:
            high = price
            best = min(best, tried, key=lambda a: _cost(ways, a.chosen))
        else:
            low = price
        if high < 4 * low and high - low < 4 * low / 2**_ROUNDS:
            break
        price = 4 * price if math.isinf(high) else high / 4 if low == 0 else math.sqrt(low * high)
    return best, _judged(ways, best, bound, limit, lowest)


def _at_price(
    ways: Ways, items: Sequence[Sequence[Option]], rest_bytes: Sequence[int], limit_bytes: int, price: float
) -> Allocation:
    """The allocation where error costs `price`; at an infinite price it is all that counts."""
    priced = [
        [
            Option(w.error if math.isinf(price) else w.cost + price * w.error, o.ranges)
            for w, o in zip(a, b, strict=True)
        ]
        for a, b in zip(ways, items, strict=True)
    ]
    return allocate(priced, rest_bytes, limit_bytes)


def _judged(ways: Ways, found: Allocation, bound: float, limit: float, lowest: float | None = None) -> Chosen:
    cost, error = _cost(ways, found.chosen), _error(ways, found.chosen)
    within = bound if error <= limit else math.inf
    return Chosen(found.chosen, cost, error, min(within, cost) if error <= limit else within, lowest or error)
