"""Allocations against brute force, their bound, and monotony."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from fxcompress.solve.allocate import Allocation, allocate, cheapened
from fxcompress.solve.repair import lowest_peak
from fxcompress.solve.slots import Option

Items = list[list[Option]]


def peak(items: Items, rest: list[int], chosen: tuple[int, ...]) -> int:
    curve = list(rest)
    for options, r in zip(items, chosen, strict=True):
        for first, last, nbytes in options[r].ranges:
            for slot in range(first, last + 1):
                curve[slot] += nbytes
    return max(curve)


def cost(items: Items, chosen: tuple[int, ...]) -> float:
    return sum(options[r].cost for options, r in zip(items, chosen, strict=True))


def brute_force(items: Items, rest: list[int], limit: int) -> float | None:
    choices = itertools.product(*(range(len(options)) for options in items))
    return min((cost(items, chosen) for chosen in choices if peak(items, rest, chosen) <= limit), default=None)


@st.composite
def problems(draw: st.DrawFn, most: int = 6) -> tuple[Items, list[int]]:
    """Tensors as a step has them: kept over their whole life, or packed between two whole ends."""
    slots = draw(st.integers(1, 12))
    items = []
    for _ in range(draw(st.integers(0, most))):
        made, last = sorted(draw(st.tuples(*[st.integers(0, slots - 1)] * 2)))
        forward, backward = sorted(draw(st.tuples(*[st.integers(made, last)] * 2)))
        nbytes = draw(st.integers(1, 1000))
        options = [Option(0.0, ((made, last, nbytes),))]
        for ratio in draw(st.lists(st.sampled_from([2, 4, 8, 32]), max_size=3, unique=True)):
            ranges = [(made, forward, nbytes), (made, backward, nbytes // ratio)]
            ranges += [] if draw(st.booleans()) else [(backward, last, nbytes)]
            options.append(Option(draw(st.floats(0, 10)), tuple(ranges)))
        items.append(options)
    return items, draw(st.lists(st.integers(0, 500), min_size=slots, max_size=slots))


def check(items: Items, rest: list[int], limit: int, found: Allocation) -> None:
    assert found.peak_bytes == peak(items, rest, found.chosen)
    assert abs(found.cost - cost(items, found.chosen)) < 1e-9
    assert found.fits == (found.peak_bytes <= limit)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(problems(), st.floats(0, 1.1))
def test_the_choice_fits_and_the_bound_holds(problem: tuple[Items, list[int]], share: float) -> None:
    items, rest = problem
    limit = int(share * peak(items, rest, (0,) * len(items)))
    found = allocate(items, rest, limit)
    check(items, rest, limit, found)
    best = brute_force(items, rest, limit)
    if found.fits:
        assert best is not None
        assert found.bound <= best + 1e-6 and abs(best - found.cost) < 1e-9


@settings(deadline=None, max_examples=100, derandomize=True)
@given(problems(most=4), st.floats(0.3, 1.0))
def test_small_problems_are_solved_where_they_can_be(problem: tuple[Items, list[int]], share: float) -> None:
    """What fits is found to fit, and what was asked of it is the lowest peak or more."""
    items, rest = problem
    limit = max(int(share * peak(items, rest, (0,) * len(items))), lowest_peak(items, rest))
    found = allocate(items, rest, limit)
    assert found.fits


def test_ten_tensors_are_solved_exactly() -> None:
    for seed in range(40):
        count = 4 + seed % 6
        items, rest = spread(seed, count)
        limit = (2 * peak(items, rest, (0,) * count) + lowest_peak(items, rest)) // 3
        best, found = brute_force(items, rest, limit), allocate(items, rest, limit)
        assert best is not None and found.fits
        assert found.cost == best and abs(found.bound - best) <= 1e-9 * best


@settings(deadline=None, max_examples=150, derandomize=True)
@given(problems(), st.floats(0, 1))
def test_what_is_out_of_reach_is_as_cheap_as_its_peak_allows(problem: tuple[Items, list[int]], share: float) -> None:
    items, rest = problem
    lowest = allocate(items, rest, int(share * lowest_peak(items, rest)) - 1)
    found = cheapened(items, rest, lowest)
    best = brute_force(items, rest, lowest.peak_bytes)
    assert not lowest.fits and best is not None
    check(items, rest, lowest.peak_bytes, found)
    assert found.fits and abs(found.cost - best) < 1e-9 and abs(found.bound - best) < 1e-6


def test_lowest_peaks_of_many_tensors_are_bounded() -> None:
    """As HiGHS says; what is found first is dearer: it was lowered elsewhere before it stood at its lowest."""
    items, rest = spread(24, 24)
    rest[10] += 3000
    lowest = allocate(items, rest, 0)
    found, best = cheapened(items, rest, lowest), highs(items, rest, lowest.peak_bytes, whole=True)
    assert found.bound <= best * (1 + 1e-9) and best <= found.cost * (1 + 1e-9)
    assert found.cost <= 1.01 * found.bound and found.cost < 0.7 * lowest.cost


def highs(items: Items, rest: list[int], limit: int, *, whole: bool) -> float:
    """The optimum that HiGHS finds, of whole choices or of fractions."""
    options = [(i, option) for i, own in enumerate(items) for option in own]
    held = np.zeros((len(rest), len(options)))
    for j, (_, option) in enumerate(options):
        for first, last, nbytes in option.ranges:
            held[first : last + 1, j] += nbytes
    member = np.array([[float(i == k) for i, _ in options] for k in range(len(items))])
    costs = np.array([option.cost for _, option in options])
    fitting = LinearConstraint(held, -np.inf, limit - np.array(rest))
    constraints = [fitting, LinearConstraint(member, 1, 1)]
    found = milp(costs, integrality=np.full(len(options), int(whole)), bounds=Bounds(0, 1), constraints=constraints)
    assert found.status == 0
    return float(found.fun)


@pytest.mark.parametrize("count", [13, 24, 60])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_more_tensors_are_solved_within_a_percent_and_bounded(count: int, share: float) -> None:
    """Against HiGHS: its linear program lies below our bound or near it, its optimum between our bound and our cost."""
    items, rest = spread(count, count)
    whole, least = peak(items, rest, (0,) * count), lowest_peak(items, rest)
    limit = int(least + share * (whole - least))
    found = allocate(items, rest, limit)
    best = highs(items, rest, limit, whole=True)
    assert found.fits and found.bound <= best * (1 + 1e-9) and best <= found.cost * (1 + 1e-9)
    assert found.cost <= 1.01 * found.bound
    assert found.bound >= highs(items, rest, limit, whole=False) * (1 - 1e-6)


def test_prices_are_those_of_the_linear_program() -> None:
    """A byte more at every slot saves the sum of the prices."""
    items, rest = spread(7, 30)
    limit = (peak(items, rest, (0,) * 30) + 2 * lowest_peak(items, rest)) // 3
    prices = allocate(items, rest, limit, nodes=0).prices
    saved = highs(items, rest, limit, whole=False) - highs(items, rest, limit + 1, whole=False)
    assert abs(sum(price for _, price in prices) - saved) <= 1e-3 * saved


def spread(seed: int, count: int) -> tuple[Items, list[int]]:
    """A deep net: layer i is made at slot i and read at slot 2n - i."""
    state = seed * 2654435761 % 2**32
    items = []
    for i in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        nbytes = 100 + state % 900
        made, read = i, 2 * count - 1 - i
        packed = [((made, made, nbytes), (made, read, nbytes // ratio), (read, read, nbytes)) for ratio in (4, 8)]
        costs = (nbytes * (1 + state % 7), nbytes * (2 + state % 11))
        items.append(
            [
                Option(0.0, ((made, read, nbytes),)),
                *(Option(float(c), ranges) for c, ranges in zip(costs, packed, strict=True)),
            ]
        )
    return items, [50] * (2 * count)


def test_no_limit_costs_nothing_and_an_impossible_one_says_so() -> None:
    items, rest = spread(1, 5)
    free = allocate(items, rest, 10**9)
    assert (free.cost, free.bound, free.fits) == (0.0, 0.0, True)
    tight = allocate(items, rest, 10)
    assert not tight.fits and tight.peak_bytes == lowest_peak(items, rest)


def test_no_items_and_no_slots() -> None:
    assert allocate([], [], 0) == Allocation((), 0, 0, 0, True)
    assert allocate([], [7, 9], 8).fits is False
    assert lowest_peak([], []) == 0
