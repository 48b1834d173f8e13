"""Allocate where what a choice holds depends on the choice.

On a CPU an encode is a call, and a call ends the row of loops that Inductor runs as one function (`join_steps`): what
was read before it is freed, and what comes after it is not there yet. So encoding one storage lowers the live bytes of
others. Apart from that, live bytes are sums over the items, and the one is reduced to the other by guessing which items
will be encoded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fxcompress.solve.allocate import Allocation, allocate
from fxcompress.solve.repair import lowest_peak
from fxcompress.solve.slots import Items, cost_of, curve_of

ROUNDS = 3
"""Guesses that follow the last choice."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Options of each item, and the live bytes per slot that no choice changes, if certain items are encoded."""

    items: Items
    rest_bytes: tuple[int, ...]

    def peak(self, chosen: tuple[int, ...]) -> int:
        return max(curve_of(self.items, self.rest_bytes, chosen), default=0)


def allocate_calls(
    problem: Callable[[frozenset[int]], Problem], calling: frozenset[int], limit_bytes: int
) -> tuple[Allocation, int]:
    """The cheapest choice found that fits when its own items are encoded, or the one with the lowest peak.

    Args:
        problem: what there is to allocate if these items are encoded. The first option of each is to keep it, and
            none costs another amount for another guess.
        calling: the items that calls would encode.
        limit_bytes: what live bytes may reach at any slot.

    Returns:
        The choice, whose bound is that of the best guess, which frees the most; and the lowest peak found.
    """
    every = problem(calling)
    first = allocate(every.items, every.rest_bytes, limit_bytes)
    if not calling:
        return first, lowest_peak(every.items, every.rest_bytes)

    def settled(chosen: tuple[int, ...]) -> tuple[Problem, Allocation]:
        own = problem(frozenset(i for i in calling if chosen[i]))
        peak = own.peak(chosen)
        cost = cost_of(every.items, chosen)
        return own, replace(first, chosen=chosen, cost=cost, peak_bytes=peak, fits=peak <= limit_bytes)

    own, found = settled(first.chosen)
    tried = [found]
    for _ in range(ROUNDS):
        if found.fits:
            break
        own, found = settled(allocate(own.items, own.rest_bytes, limit_bytes).chosen)
        tried.append(found)
    if not any(each.fits for each in tried):
        last = (
            len(options) - 1 if i in calling else c
            for i, (options, c) in enumerate(zip(every.items, first.chosen, strict=True))
        )
        tried.append(settled(tuple(last))[1])
    best = min(tried, key=lambda each: (not each.fits, each.cost if each.fits else each.peak_bytes))
    return replace(best, bound=min(first.bound, best.cost)), min(each.peak_bytes for each in tried)
