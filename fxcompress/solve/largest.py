"""The largest whole number that passes a test which small numbers pass and large ones fail, with few tests.

`find_largest(try_size, limit, …)` is for tests that are slow and come with a number that grows nearly in a line with
the size: the line through what is known guesses where it crosses the limit. Only the tests decide, however: what is
returned has passed, and its successor has failed. Doubling and bisecting take over where the line leads nowhere.
Torch-free.
"""

from collections.abc import Callable
from dataclasses import dataclass

PATIENCE = 8
"""Tests placed by the line; nearly straight needs take three to five."""


@dataclass(frozen=True, slots=True)
class Tested:
    """One size: whether it passed, and what it needs, as a guide for where to look next."""

    size: int
    fits: bool
    need: float


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest size that passed and the smallest that failed; None if none did. `tests` counts them."""

    fitting: Tested | None
    failing: Tested | None
    tests: int


def find_largest(
    try_size: Callable[[int], tuple[bool, float]], limit: float, *, base: float, start: int, most: int
) -> Largest:
    """Find the largest size in 1..most that passes.

    Args:
        try_size: tests a size; returns whether it passes, and its need in the unit of `limit`.
        limit: need above which sizes are expected to fail.
        base: need of size 0.
        start: the first size tried.
        most: no larger one is tried.

    Returns:
        Sizes next to each other, or `failing` None if `most` passes, or `fitting` None if 1 fails.
    """
    known: list[Tested] = []
    low, high = 0, most + 1
    size = min(max(start, 1), most)
    while high - low > 1:
        tested = Tested(size, *try_size(size))
        known.append(tested)
        low, high = (size, high) if tested.fits else (low, size)
        size = min(max(_guess(known, limit, base, low, high, most), low + 1), high - 1)
    fitting = next((item for item in known if item.size == low), None)
    failing = next((item for item in known if item.size == high), None)
    return Largest(fitting, failing, len(known))


def _guess(known: list[Tested], limit: float, base: float, low: int, high: int, most: int) -> int:
    """Where the line through the two needs nearest the limit crosses it; else twice as much, or the middle."""
    points = sorted([(0, base), *((item.size, item.need) for item in known)], key=lambda point: abs(point[1] - limit))
    (size, need), (other, other_need) = points[:2]
    slope = (need - other_need) / (size - other)
    if len(known) < PATIENCE and slope > 0:
        return int(min(size + (limit - need) / slope, most + 1))
    return 2 * low if high > most else (low + high) // 2
