"""Make a choice of options fit a limit, then as cheap as it gets item by item: the heuristics of the allocation."""

from collections.abc import Sequence

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
    old, new = items[i][now[i]], items[i][r]
    _apply(curve, old, -1)
    _apply(curve, new, 1)
    if all(
        curve[slot] <= most or bytes_at(new, slot) <= bytes_at(old, slot)
        for first, last, _ in new.ranges
        for slot in range(first, last + 1)
    ):
        now[i] = r
        return True
    _apply(curve, new, -1)
    _apply(curve, old, 1)
    return False


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


def _apply(curve: list[int], option: Option, sign: int) -> None:
    for first, last, nbytes in option.ranges:
        change = sign * nbytes
        curve[first : last + 1] = [size + change for size in curve[first : last + 1]]
