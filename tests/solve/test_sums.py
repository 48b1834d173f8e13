"""Reachable sums and exact covers of one moment, against trying every choice."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.solve.knapsack import least_cost
from fxcompress.solve.sums import costs_of, raised

sizes = st.integers(-40, 40).map(lambda number: 6 * number)
choices = st.tuples(sizes, st.integers(-5, 20).map(float))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.lists(sizes, min_size=1, max_size=3), max_size=5), st.integers(-200, 500))
def test_a_need_is_raised_to_the_next_sum(groups: list[list[int]], need: int) -> None:
    reached = [sum(chosen) for chosen in itertools.product(*groups)]
    assert raised(groups, need) == min((total for total in reached if total >= need), default=need)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=3), min_size=1, max_size=5), st.floats(0, 1))
def test_costs_are_raised_to_no_more_than_the_next_sum(groups: list[list[float]], share: float) -> None:
    most = sum(map(max, groups))
    bound = share * most
    following = min(total for total in map(sum, itertools.product(*groups)) if total >= bound - 1e-12)
    lifted = costs_of(groups, most).raised(bound)
    assert bound <= lifted <= following * (1 + 1e-9) + 1e-12
    assert lifted == bound or following - lifted <= most * 1e-3


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.lists(choices, min_size=1, max_size=3), max_size=5), st.integers(-200, 500))
def test_the_least_cost_of_freeing_enough(groups: list[list[tuple[int, float]]], need: int) -> None:
    made = list(itertools.product(*groups))
    costs = [sum(cost for _, cost in chosen) for chosen in made if sum(size for size, _ in chosen) >= need]
    assert least_cost(groups, need) == min(costs, default=math.inf)


def test_unlike_sizes_are_left_alone() -> None:
    groups = [[0, 10**9 + 7 * i] for i in range(50)]
    assert raised(groups, 12345) == 12345
    assert least_cost([[(0, 0.0), (size, 1.0)] for _, size in groups], 10**10) is None
