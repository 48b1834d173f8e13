"""Allocations whose live bytes depend on what is encoded, against brute force."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.passes.allocate_calls import Problem, allocate_calls
from fxcompress.solve.slots import Option


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[list[float]]]:
    """Bytes of the tensors that one row of loops makes, each read by the next, and what encoding them costs."""
    sizes = draw(st.lists(st.integers(8, 1000), min_size=1, max_size=5))
    costs = [sorted(draw(st.lists(st.floats(0.1, 10), min_size=0, max_size=2))) for _ in sizes]
    return sizes, costs


def problem_of(sizes: list[int], costs: list[list[float]], called: frozenset[int]) -> Problem:
    """Loop i makes tensor i beside a scratch tensor of its size; a row of loops lasts until one of `called` is made.

    Saved tensors live to the end. One slot per row, and a last one.
    """
    starts = [0]
    for i in range(len(sizes) - 1):
        starts.append(starts[-1] + (i in called))
    end = starts[-1] + 1
    rest = [sum(size for size, start in zip(sizes, starts, strict=True) if start == slot) for slot in range(end)]
    items = [
        [
            Option(0.0, ((start, end, size),)),
            *(Option(cost, ((start, start, size), (start, end, size // 4))) for cost in own),
        ]
        for size, start, own in zip(sizes, starts, costs, strict=True)
    ]
    return Problem(items, (*rest, 0))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(rows(), st.floats(0.2, 1.0))
def test_a_choice_is_judged_by_what_it_encodes(row: tuple[list[int], list[list[float]]], share: float) -> None:
    sizes, costs = row
    calling = frozenset(i for i, own in enumerate(costs) if own)

    def judged(chosen: tuple[int, ...]) -> tuple[float, int]:
        called = frozenset(i for i in calling if chosen[i])
        cost = sum(own[r - 1] for own, r in zip(costs, chosen, strict=True) if r)
        return cost, problem_of(sizes, costs, called).peak(chosen)

    choices = list(itertools.product(*(range(len(own) + 1) for own in costs)))
    limit = int(share * judged((0,) * len(sizes))[1])
    found, lowest = allocate_calls(lambda called: problem_of(sizes, costs, called), calling, limit)
    cost, peak = judged(found.chosen)
    assert (found.cost, found.peak_bytes, found.fits) == (cost, peak, peak <= limit)
    assert lowest <= peak and lowest in {judged(chosen)[1] for chosen in choices}
    best = min((cost for cost, peak in map(judged, choices) if peak <= limit), default=None)
    if found.fits:
        assert best is not None and found.bound <= best + 1e-9 and best <= cost + 1e-9
    if judged(tuple(len(own) for own in costs))[1] <= limit:
        assert found.fits


def test_encoding_one_tensor_makes_room_for_another() -> None:
    """Three loops in one row hold all six tensors; a call after the first ends its row."""
    sizes, costs = [100, 100, 100], [[1.0], [], []]
    found, _ = allocate_calls(lambda called: problem_of(sizes, costs, called), frozenset({0}), 450)
    assert found.fits and found.chosen == (1, 0, 0) and found.peak_bytes == 425
