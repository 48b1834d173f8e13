"""Make a choice of options fit a limit, then as cheap as it gets item by item: the heuristics of the allocation."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from fxcompress.solve.slots import Items, Option, bytes_at, cheapest, curve_of, merge


def lowest_peak(items: Items, rest_bytes: Sequence[int]) -> int:
    """The peak that is reached by giving items fewer bytes wherever the peak stands, whatever it costs."""
    merged = merge(items, rest_bytes)
    return max(_lowered(merged.items, merged.rest, 0, cheapest(merged.items))[1])


def repair(items: Items, rest: Sequence[int], limit: int, chosen: Sequence[int]) -> tuple[list[int], int]:
    """A choice near `chosen` that fits if one is found, and its peak."""
    now, curve = _lowered(items, rest, limit, chosen)
    if max(curve) <= limit:
        _cheapen(items, curve, limit, now)
    return now, max(curve)


def _lowered(items: Items, rest: Sequence[int], limit: int, chosen: Sequence[int]) -> tuple[list[int], list[int]]:
    """While a slot exceeds the limit, take the changes that lower it at the least cost per byte.

    None may raise another slot as high, so that the heights of the slots, sorted, fall with every change.
    """
    now, curve = list(chosen), curve_of(items, rest, chosen)
    while (top := max(curve)) > limit:
        slot, changed = curve.index(top), False
        for _, i, r in _moves(items, now, slot):
            if curve[slot] <= limit:
                break
            if bytes_at(items[i][r], slot) < bytes_at(items[i][now[i]], slot):
                changed = _changed(items, curve, now, i, r, top - 1) or changed
        if not changed:
            break
    return now, curve


def _moves(items: Items, now: Sequence[int], slot: int) -> list[tuple[float, int, int]]:
    """Changes of one item that lower `slot`, by cost per byte."""
    moves = []
    for i, options in enumerate(items):
        current = options[now[i]]
        here = bytes_at(current, slot) if len(options) > 1 else 0
        for r, option in enumerate(options if here else ()):
            gain = here - bytes_at(option, slot)
            if gain > 0:
                moves.append(((option.cost - current.cost) / gain, i, r))
    return sorted(moves)


def _changed(items: Items, curve: list[int], now: list[int], i: int, r: int, most: int) -> bool:
    """Let item `i` take option `r`, if no slot that this raises gets higher than `most`."""
    steps = _difference(items[i][now[i]], items[i][r])
    if any(change > 0 and max(curve[first:end]) + change > most for first, end, change in steps):
        return False
    for first, end, change in steps:
        curve[first:end] = [size + change for size in curve[first:end]]
    now[i] = r
    return True


def _difference(old: Option, new: Option) -> list[tuple[int, int, int]]:
    """Bytes that `new` holds beyond `old`, where that is not 0: first slot, the slot after the last, bytes."""
    change: dict[int, int] = {}
    for sign, option in ((-1, old), (1, new)):
        for first, last, nbytes in option.ranges:
            change[first] = change.get(first, 0) + sign * nbytes
            change[last + 1] = change.get(last + 1, 0) - sign * nbytes
    edges = sorted(change)
    heights = accumulate(change[edge] for edge in edges)
    return [(a, b, height) for (a, b), height in zip(pairwise(edges), heights, strict=False) if height and a < b]


def _cheapen(items: Items, curve: list[int], limit: int, now: list[int]) -> None:
    """Give each item a cheaper option where it fits, the largest gains first."""
    gains = [
        (option.cost - items[i][now[i]].cost, i, r)
        for i, options in enumerate(items)
        for r, option in enumerate(options)
        if option.cost < items[i][now[i]].cost
    ]
    for _, i, r in sorted(gains):
        if items[i][r].cost < items[i][now[i]].cost:
            _changed(items, curve, now, i, r, limit)
