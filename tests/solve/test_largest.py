"""The largest passing size against a scan, on lines, stairs, bends and anything monotone."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.solve.largest import PATIENCE, Largest, find_largest

MOST = 4096


def search(need: Callable[[int], float], limit: float, *, start: int = 8, most: int = MOST) -> Largest:
    tried: list[int] = []

    def try_size(size: int) -> tuple[bool, float]:
        assert 1 <= size <= most and size not in tried
        tried.append(size)
        return need(size) <= limit, need(size)

    found = find_largest(try_size, limit, base=need(0), start=start, most=most)
    assert found.tests == len(tried)
    return found


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=300),
    st.integers(0, 40_000),
    st.integers(1, 400),
)
@settings(max_examples=300)
def test_it_is_what_a_scan_finds(rises: list[int], limit: int, start: int) -> None:
    """Any monotone need: no size larger than the answer passes."""
    needs = [0]
    for rise in rises:
        needs.append(needs[-1] + rise)
    most = len(rises)
    found = search(needs.__getitem__, limit, start=start, most=most)
    largest = max(size for size in range(most + 1) if needs[size] <= limit)
    assert (found.fitting.size if found.fitting else 0) == largest
    assert (found.failing.size if found.failing else most + 1) == largest + 1
    assert found.tests <= PATIENCE + most.bit_length()


@pytest.mark.parametrize("slope", [0.3, 7.0, 10_000.0])
@pytest.mark.parametrize("start", [1, 8, 500])
def test_a_line_takes_four_tests(slope: float, start: int) -> None:
    found = search(lambda size: 1000 + slope * size, 1000 + slope * 1234.5, start=start)
    assert found.fitting and found.fitting.size == 1234 and found.failing and found.failing.size == 1235
    assert found.tests <= 4


def test_a_line_that_does_not_start_at_its_base_takes_five() -> None:
    found = search(lambda size: 1000 if size == 0 else 9000 + 7.0 * size, 9000 + 7 * 1234.5)
    assert found.fitting and found.fitting.size == 1234
    assert found.tests <= 5


def test_needs_that_fluctuate_around_a_line_end_at_neighbours() -> None:
    found = search(lambda size: 50 * size + (size * 7919) % 100, 50_000)
    assert found.fitting and found.failing and found.failing.size == found.fitting.size + 1


def test_nothing_fits() -> None:
    found = search(lambda size: 10.0 + size, 5.0)
    assert found.fitting is None and found.failing is not None and found.failing.size == 1


def test_everything_fits() -> None:
    found = search(lambda size: 1.0, 5.0)
    assert found.failing is None and found.fitting is not None and found.fitting.size == MOST
