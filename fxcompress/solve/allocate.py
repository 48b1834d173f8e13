"""Choose one representation per tensor so that live bytes fit at every moment, at least cost.

The problem: item `i` takes exactly one option `r`, which costs `cost[i][r]` and holds bytes over some ranges of slots;
at each slot the bytes of all items and of the rest must not exceed the limit. `allocate` solves its Lagrangian dual,
whose value is a lower bound for every feasible choice, repairs the choices of each round at the slot that exceeds the
limit most, takes back what the repair no longer needs, and returns the cheapest feasible choice with that bound.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Range = tuple[int, int, int]
"""First slot, last slot, bytes."""
ROUNDS = 32
"""Rounds of the dual."""
EXACT_ITEMS = 12
"""Up to so many items with a choice, the solution is proved optimal."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to hold an item. `cost` is in any unit that adds up, for instance seconds of step time."""

    cost: float
    ranges: tuple[Range, ...]


Items = Sequence[Sequence[Option]]


@dataclass(frozen=True, slots=True)
class Allocation:
    """`chosen[i]` is the option of item i. `bound`: no feasible choice costs less."""

    chosen: tuple[int, ...]
    cost: float
    bound: float
    peak_bytes: int
    fits: bool


def allocate(items: Items, rest_bytes: Sequence[int], limit_bytes: int) -> Allocation:
    """Solve for one limit.

    Args:
        items: the options of each item, at least one each.
        rest_bytes: live bytes per slot that no choice changes.
        limit_bytes: what the sum may reach at any slot.

    Returns:
        The cheapest choice found that fits; if none was found, the one with the lowest peak, with `fits` False.
    """
    items, rest = _merged(items, rest_bytes)
    start = _cheapest(items)
    best = _finish(items, rest, limit_bytes, start)
    bound = sum(options[r].cost for options, r in zip(items, start, strict=True))
    if not best.fits or best.cost <= bound:
        return Allocation(best.chosen, best.cost, bound, best.peak_bytes, best.fits)
    prices, highest = [0.0] * len(rest), bound
    for number in range(ROUNDS):
        chosen, value = _price(items, prices)
        value += sum(price * (size - limit_bytes) for price, size in zip(prices, rest, strict=True))
        if value > highest + (best.cost - highest) / 16 or number == ROUNDS - 1:
            best = min(best, _finish(items, rest, limit_bytes, chosen), key=_rank)
        highest = max(highest, value)
        prices = _ascend(prices, [size - limit_bytes for size in _curve(items, rest, chosen)], best.cost - value)
    if sum(len(options) > 1 for options in items) <= EXACT_ITEMS:
        best, highest = _branch(items, rest, limit_bytes, prices, best)
    return Allocation(best.chosen, best.cost, min(highest, best.cost), best.peak_bytes, best.fits)


def _branch(
    items: Items, rest: Sequence[int], limit: int, prices: Sequence[float], best: Allocation
) -> tuple[Allocation, float]:
    """Search all choices that the priced bound does not rule out; the best one, whose cost is then the bound."""
    before = [0.0, *accumulate(prices)]
    priced = [[_priced(option, before) for option in options] for options in items]
    base = sum(price * (size - limit) for price, size in zip(prices, rest, strict=True))
    ahead = [*accumulate((min(costs) for costs in reversed(priced)), initial=base)][::-1]
    chosen = [0] * len(items)

    def visit(i: int, so_far: float) -> None:
        nonlocal best
        if so_far + ahead[i] >= best.cost:
            return
        if i < len(items):
            for r in sorted(range(len(items[i])), key=priced[i].__getitem__):
                chosen[i] = r
                visit(i + 1, so_far + priced[i][r])
            return
        top = max(_curve(items, rest, chosen))
        cost = sum(options[r].cost for options, r in zip(items, chosen, strict=True))
        if top <= limit and cost < best.cost:
            best = Allocation(tuple(chosen), cost, 0.0, top, True)

    visit(0, 0.0)
    return best, best.cost


def _ascend(prices: Sequence[float], excess: Sequence[int], gap: float) -> list[float]:
    """Half of Polyak's step: along the subgradient, by half of what would close the gap to the best known choice."""
    slope = [over if over > 0 or price > 0 else 0 for price, over in zip(prices, excess, strict=True)]
    scale = 0.5 * gap / max(sum(over * over for over in slope), 1)
    return [max(price + scale * over, 0.0) for price, over in zip(prices, slope, strict=True)]


def lowest_peak(items: Items, rest_bytes: Sequence[int]) -> int:
    """The peak that is reached by giving items fewer bytes wherever the peak stands, whatever it costs."""
    items, rest = _merged(items, rest_bytes)
    return max(_repair(items, rest, 0, _cheapest(items))[1])


def _merged(items: Items, rest_bytes: Sequence[int]) -> tuple[Items, list[int]]:
    """The same problem with neighbouring slots merged where no option begins or ends between them."""
    ranges = [reach for options in items for option in options for reach in option.ranges]
    edges = {0} | {first for first, _, _ in ranges} | {last + 1 for _, last, _ in ranges}
    cuts = sorted(edge for edge in edges if edge < max(len(rest_bytes), 1))
    ends = [*cuts[1:], max(len(rest_bytes), 1)]
    rest = [max(rest_bytes[first:end], default=0) for first, end in zip(cuts, ends, strict=True)]

    def slot(edge: int) -> int:
        return bisect_left(cuts, edge)

    merged = [
        [Option(o.cost, tuple((slot(a), slot(b + 1) - 1, size) for a, b, size in o.ranges)) for o in options]
        for options in items
    ]
    return merged, rest


def _rank(allocation: Allocation) -> tuple[bool, float, int]:
    return not allocation.fits, allocation.cost if allocation.fits else allocation.peak_bytes, allocation.peak_bytes


def _cheapest(items: Items) -> list[int]:
    return [min(range(len(options)), key=lambda r: options[r].cost) for options in items]


def _curve(items: Items, rest: Sequence[int], chosen: Sequence[int]) -> list[int]:
    change = [0] * (len(rest) + 1)
    for options, r in zip(items, chosen, strict=True):
        for first, last, nbytes in options[r].ranges:
            change[first] += nbytes
            change[last + 1] -= nbytes
    return [size + own for size, own in zip(rest, accumulate(change[:-1]), strict=True)]


def _price(items: Items, prices: Sequence[float]) -> tuple[list[int], float]:
    """The option of each item that is cheapest with bytes priced per slot, and the sum of those costs."""
    before = [0.0, *accumulate(prices)]
    chosen, total = [], 0.0
    for options in items:
        costs = [_priced(option, before) for option in options]
        total += min(costs)
        chosen.append(costs.index(min(costs)))
    return chosen, total


def _priced(option: Option, before: Sequence[float]) -> float:
    """Cost of an option with its bytes; `before[t]` sums the prices of the slots before t."""
    return option.cost + sum(nbytes * (before[last + 1] - before[first]) for first, last, nbytes in option.ranges)


def _weight(option: Option) -> int:
    """Bytes times slots."""
    return sum((last + 1 - first) * nbytes for first, last, nbytes in option.ranges)


def _finish(items: Items, rest: Sequence[int], limit: int, chosen: Sequence[int]) -> Allocation:
    """Make a choice fit, then as cheap as it can be made item by item."""
    now, curve = _repair(items, rest, limit, chosen)
    if max(curve) <= limit:
        _relax(items, curve, limit, now)
    cost = sum(options[r].cost for options, r in zip(items, now, strict=True))
    return Allocation(tuple(now), cost, 0.0, max(curve), max(curve) <= limit)


def _repair(items: Items, rest: Sequence[int], limit: int, chosen: Sequence[int]) -> tuple[list[int], list[int]]:
    """While a slot exceeds the limit, take the changes that lower it at the least cost per byte."""
    now, curve = list(chosen), _curve(items, rest, chosen)
    while (top := max(curve)) > limit:
        slot = curve.index(top)
        moves = _moves(items, now, slot)
        if not moves:
            break
        for _, i, r in moves:
            if curve[slot] <= limit:
                break
            if _weight(items[i][r]) < _weight(items[i][now[i]]):
                _apply(curve, items[i][now[i]], -1)
                _apply(curve, items[i][r], 1)
                now[i] = r
    return now, curve


def _moves(items: Items, now: Sequence[int], slot: int) -> list[tuple[float, int, int]]:
    """Changes of one item that lower `slot`, by cost per byte; only towards fewer bytes, so that repairs end."""
    moves = []
    for i, options in enumerate(items):
        current = options[now[i]]
        here = _bytes_at(current, slot) if len(options) > 1 else 0
        for r, option in enumerate(options if here else ()):
            gain = here - _bytes_at(option, slot)
            if gain > 0 and _weight(option) < _weight(current):
                moves.append(((option.cost - current.cost) / gain, i, r))
    return sorted(moves)


def _relax(items: Items, curve: list[int], limit: int, now: list[int]) -> None:
    """Give each item a cheaper option where it fits, the largest gains first."""
    gains = [
        (option.cost - items[i][now[i]].cost, i, r)
        for i, options in enumerate(items)
        for r, option in enumerate(options)
        if option.cost < items[i][now[i]].cost
    ]
    for _, i, r in sorted(gains):
        old, new = items[i][now[i]], items[i][r]
        if new.cost >= old.cost:
            continue
        _apply(curve, old, -1)
        _apply(curve, new, 1)
        if all(max(curve[first : last + 1]) <= limit for first, last, _ in new.ranges):
            now[i] = r
        else:
            _apply(curve, new, -1)
            _apply(curve, old, 1)


def _apply(curve: list[int], option: Option, sign: int) -> None:
    for first, last, nbytes in option.ranges:
        change = sign * nbytes
        curve[first : last + 1] = [size + change for size in curve[first : last + 1]]


def _bytes_at(option: Option, slot: int) -> int:
    return sum(nbytes for first, last, nbytes in option.ranges if first <= slot <= last)
