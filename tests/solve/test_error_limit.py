"""Choices under an error limit against brute force, their bound, and the peak that some must keep as well."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.solve.error_limit import Way, cheapest, within_peak
from fxcompress.solve.slots import Option


@st.composite
def problems(draw: st.DrawFn) -> list[list[Way]]:
    """Tensors as plans have them, kept or in fewer bits with more error, and some that no width is exact enough for."""
    items = []
    for _ in range(draw(st.integers(0, 7))):
        size, scale = draw(st.integers(1, 9)), draw(st.floats(1e-4, 10))
        ways = [] if draw(st.integers(0, 4)) == 0 else [Way(32.0 * size, 0.0)]
        for bits in draw(st.sampled_from([(8,), (8, 4), (8, 4, 2), (2,)])):
            ways.append(Way(float(bits * size), scale * draw(st.floats(0.3, 3)) / (2**bits - 1) ** 2))
        items.append(ways)
    return items


def total(items: list[list[Way]], chosen: tuple[int, ...]) -> tuple[float, float]:
    taken = [ways[r] for ways, r in zip(items, chosen, strict=True)]
    return math.fsum(way.cost for way in taken), math.fsum(way.error for way in taken)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(problems(), st.floats(1e-4, 10))
def test_the_cheapest_choice_is_found_or_the_lowest_error_is_stated(items: list[list[Way]], limit: float) -> None:
    found = cheapest(items, limit)
    totals = [total(items, chosen) for chosen in itertools.product(*(range(len(ways)) for ways in items))]
    assert (found.cost, found.error) == total(items, found.chosen)
    assert found.lowest == min(error for _, error in totals)
    within = [cost for cost, error in totals if error <= limit]
    assert found.fits == bool(within)
    if within:
        assert found.error <= limit
        assert math.isclose(found.cost, min(within)) and math.isclose(found.bound, min(within))


def test_a_thousand_tensors_are_within_a_promille_of_the_bound() -> None:
    items = [
        [Way(32.0 * size, 0.0), *(Way(float(bits * size), 10.0 ** (i % 5) / (2**bits - 1) ** 2) for bits in (8, 4, 2))]
        for i, size in enumerate(itertools.islice(itertools.cycle([1, 2, 4, 8, 3]), 1000))
    ]
    found = cheapest(items, 20.0)
    assert found.fits and found.error <= 20.0 and found.bound <= found.cost <= 1.001 * found.bound


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_under_a_peak_the_choice_keeps_both_limits_and_the_bound(data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, 6))
    items, errors = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, slots - 1)] * 2)))
        nbytes, scale = data.draw(st.integers(8, 400)), data.draw(st.floats(1e-3, 1))
        spans = [(0.0, nbytes, 0.0), *((1.0, nbytes * bits // 32, scale / (2**bits - 1) ** 2) for bits in (8, 4, 2))]
        items.append([Option(cost * nbytes, ((first, last, size),)) for cost, size, _ in spans])
        errors.append([error for _, _, error in spans])
    rest = data.draw(st.lists(st.integers(0, 200), min_size=slots, max_size=slots))
    limit_bytes, limit = data.draw(st.integers(100, 1500)), data.draw(st.floats(1e-5, 0.3))

    def peak(chosen: tuple[int, ...]) -> int:
        curve = list(rest)
        for options, r in zip(items, chosen, strict=True):
            for first, last, nbytes in options[r].ranges:
                for slot in range(first, last + 1):
                    curve[slot] += nbytes
        return max(curve)

    ways = [[Way(o.cost, e) for o, e in zip(*both, strict=True)] for both in zip(items, errors, strict=True)]
    choices = list(itertools.product(*(range(len(own)) for own in ways)))
    fitting = [total(ways, chosen) for chosen in choices if peak(chosen) <= limit_bytes]
    best = min((cost for cost, error in fitting if error <= limit), default=None)
    allocation, found = within_peak(items, errors, rest, limit_bytes, limit)
    assert (found.cost, found.error) == total(ways, found.chosen)
    if allocation.fits and found.fits:
        assert best is not None and peak(found.chosen) <= limit_bytes and found.error <= limit
        assert found.bound <= best + 1e-9 and best <= found.cost + 1e-9
    elif allocation.fits:
        assert found.error > limit
    # With so few tensors, `allocate` is exact, and so is the most exact choice that fits.
    assert (best is not None) == (allocation.fits and found.fits)
