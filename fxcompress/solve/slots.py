"""Items with options, and the bytes that they hold over time slots: what the allocation is about."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Range = tuple[int, int, int]
"""First slot, last slot, bytes."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to hold an item. `cost` is in any unit that adds up, for instance seconds of step time."""

    cost: float
    ranges: tuple[Range, ...]


Items = Sequence[Sequence[Option]]


@dataclass(frozen=True, slots=True)
class Merged:
    """A problem with neighbouring slots merged; `firsts[t]` is the first of the slots that became slot t.

    Of those slots, `tops[t]` is the one with the most other bytes.
    """

    items: Items
    rest: list[int]
    firsts: list[int]
    tops: list[int]


def merge(items: Items, rest_bytes: Sequence[int]) -> Merged:
    """Merge neighbouring slots where no option begins or ends between them: only the highest of each can bind."""
    ranges = [reach for options in items for option in options for reach in option.ranges]
    edges = {0} | {first for first, _, _ in ranges} | {last + 1 for _, last, _ in ranges}
    count = max(len(rest_bytes), 1)
    firsts = sorted(edge for edge in edges if edge < count)
    padded = [*rest_bytes, 0][:count]
    tops = [max(range(a, b), key=padded.__getitem__) for a, b in zip(firsts, [*firsts[1:], count], strict=True)]

    def slot(edge: int) -> int:
        return bisect_left(firsts, edge)

    merged = [
        [Option(o.cost, tuple((slot(a), slot(b + 1) - 1, size) for a, b, size in o.ranges)) for o in options]
        for options in items
    ]
    return Merged(merged, [padded[top] for top in tops], firsts, tops)


def cheapest(items: Items) -> list[int]:
    """The cheapest option of each item."""
    return [min(range(len(options)), key=lambda r: options[r].cost) for options in items]


def cost_of(items: Items, chosen: Sequence[int]) -> float:
    return sum(options[r].cost for options, r in zip(items, chosen, strict=True))


def curve_of(items: Items, rest: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Live bytes per slot under a choice."""
    change = [0] * (len(rest) + 1)
    for options, r in zip(items, chosen, strict=True):
        for first, last, nbytes in options[r].ranges:
            change[first] += nbytes
            change[last + 1] -= nbytes
    return [size + own for size, own in zip(rest, accumulate(change[:-1]), strict=True)]


def priced(option: Option, before: Sequence[float]) -> float:
    """Cost of an option with its bytes; `before[t]` sums the prices per byte of the slots before t."""
    return option.cost + sum(nbytes * (before[last + 1] - before[first]) for first, last, nbytes in option.ranges)


def bytes_at(option: Option, slot: int) -> int:
    return sum(nbytes for first, last, nbytes in option.ranges if first <= slot <= last)
