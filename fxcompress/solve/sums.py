"""Sums that can be reached by taking one number from each of several groups.

`Sums` holds them as the bits of one integer, in whole units; `next_reachable` says which is the first at or above a
number. They lift what a relaxation says: no choice has a cost, or frees an amount of bytes, between two sums.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_BITS = 1 << 18
"""Above so many units nothing is said: the sums of many unlike numbers lie close together anyway."""
UNITS = 1 << 17
"""Units that a cost is counted in."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums, as bits."""

    bits: int

    def next_reachable(self, at_least: int) -> int | None:
        """The smallest sum of `at_least` or more; None if there is none."""
        above = self.bits >> max(at_least, 0)
        return None if not above else max(at_least, 0) + (above & -above).bit_length() - 1


def sums_of(groups: Iterable[Sequence[int]], most: int) -> Sums:
    """All sums up to `most` of one number of 0 or more from each group."""
    bits, mask = 1, (1 << (most + 1)) - 1
    for group in groups:
        parts = [bits << number for number in set(group)]
        bits = 0
        for part in parts:
            bits |= part & mask
    return Sums(bits)


def raised(groups: Sequence[Sequence[int]], need: int) -> int:
    """The smallest sum of `need` or more; `need` itself where there is none, or where sums are too many to list.

    Args:
        groups: whole numbers, at least one in each; one of each is taken.
        need: what is to be reached.
    """
    lowest = sum(map(min, groups))
    above = [[number - min(group) for number in group] for group in groups]
    unit = math.gcd(*(number for group in above for number in group)) or 1
    most = sum(map(max, above))
    if most // unit > MOST_BITS:
        return need
    counted = [[number // unit for number in group] for group in above]
    found = sums_of(counted, most // unit).next_reachable(-(-(need - lowest) // unit))
    return need if found is None else found * unit + lowest


@dataclass(frozen=True, slots=True)
class Costs:
    """Sums of costs, rounded down to units of `unit` each, so that a sum of `count` of them loses `count` units."""

    sums: Sums
    unit: float
    count: int

    def raised(self, bound: float) -> float:
        """A lower bound for all sums that are at least `bound`."""
        found = self.sums.next_reachable(math.floor(bound / self.unit) - self.count)
        return bound if found is None else max(bound, found * self.unit)


def costs_of(groups: Sequence[Sequence[float]], most: float) -> Costs:
    """The sums of costs of 0 or more, up to `most`, one from each group."""
    unit = max(most, 1e-300) / UNITS
    counted = [[int(cost / unit) for cost in group if cost <= most] for group in groups]
    return Costs(sums_of(counted, UNITS), unit, len(counted))
