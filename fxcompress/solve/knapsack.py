"""The least cost at which whole choices free enough bytes at one moment, exactly (Bellman 1957)."""

import math
from collections.abc import Sequence

MOST_STEPS = 1 << 21
"""Sizes times choices above which nothing is computed."""
Choice = tuple[int, float]
"""Bytes freed and cost, either of any sign."""


def least_cost(groups: Sequence[Sequence[Choice]], need: int) -> float | None:
    """The least total cost of one choice from each group that together free `need` bytes or more.

    Infinite if none do; None if the sizes are too many to try, as unlike sizes make them.
    """
    lowest = [min(size for size, _ in group) for group in groups]
    unit = math.gcd(*(size - low for group, low in zip(groups, lowest, strict=True) for size, _ in group)) or 1
    most = max(-(-(need - sum(lowest)) // unit), 0)
    if (most + 1) * sum(map(len, groups)) > MOST_STEPS:
        return None
    # best[s]: the least cost of freeing s units, the last entry of freeing that many or more.
    best = [0.0] + [math.inf] * most
    for group, low in zip(groups, lowest, strict=True):
        steps = [((size - low) // unit, cost) for size, cost in group]
        best = _least([_shifted(best, min(step, most), cost) for step, cost in steps])
    return best[most]


def _shifted(best: list[float], step: int, cost: float) -> list[float]:
    """Costs after a choice that frees `step` units, what exceeds the last entry counted there."""
    kept = len(best) - step
    moved = [math.inf] * step + [before + cost for before in best[:kept]]
    moved[-1] = min(best[kept - 1 :]) + cost
    return moved


def _least(tables: list[list[float]]) -> list[float]:
    return tables[0] if len(tables) == 1 else list(map(min, *tables))
