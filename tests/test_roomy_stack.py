"""Calls at every depth of the stack are equally fast: none maps memory each time."""

import resource
import sys
from collections.abc import Callable

import pytest

from fxcompress.roomy_stack import with_room

CALLS = 2000


def leaf(number: int) -> list[int]:
    return [number]


# A larger frame than a level of the recursion below: at some depth only this one has no room left.
leaf.__code__ = leaf.__code__.replace(co_stacksize=64)


def loop() -> None:
    for i in range(CALLS):
        leaf(i)


def faults_at(depth: int, run: Callable[[], None]) -> int:
    """Pages that the kernel hands out while `run` runs `depth` calls deep."""
    if depth:
        return faults_at(depth - 1, run)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def most_faults(run: Callable[[], None]) -> int:
    return max(faults_at(depth, run) for depth in range(400))


def test_no_depth_is_slow() -> None:
    assert most_faults(with_room(loop)) < CALLS // 4


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="about CPython's stack")
def test_without_room_some_depth_maps_a_page_at_each_call() -> None:
    assert most_faults(loop) >= CALLS


def test_arguments_results_and_errors_pass() -> None:
    def divide(numerator: int, *, by: int) -> float:
        return numerator / by

    assert with_room(divide)(6, by=4) == 1.5
    with pytest.raises(ZeroDivisionError):
        with_room(divide)(6, by=0)
