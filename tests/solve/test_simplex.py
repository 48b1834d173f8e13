"""Boxed linear programs, grown row by row, against HiGHS."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fxcompress.solve.simplex import Program, make_program

Rows = list[tuple[list[float], float]]
numbers = st.integers(-8, 8).map(float)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[float], Rows]:
    count = draw(st.integers(1, 6))
    costs = draw(st.lists(st.integers(0, 9).map(float), min_size=count, max_size=count))
    row = st.tuples(st.lists(numbers, min_size=count, max_size=count), numbers)
    return costs, draw(st.lists(row, max_size=6))


def agrees(program: Program, costs: list[float], rows: Rows, box: list[tuple[float, float]]) -> None:
    feasible = program.solve()
    matrix = np.array([row for row, _ in rows]).reshape(-1, len(costs))
    expected = linprog(costs, matrix, [bound for _, bound in rows], bounds=box)
    assert feasible == (expected.status == 0)
    if not feasible:
        return
    x = program.solution()
    assert abs(np.dot(costs, x) - expected.fun) < 1e-6
    assert all(np.dot(row, x) <= bound + 1e-6 for row, bound in rows)
    prices = program.prices()
    least = [(cost + sum(p * row[j] for p, (row, _) in zip(prices, rows, strict=True))) for j, cost in enumerate(costs)]
    dual = sum(min(low * c, high * c) for c, (low, high) in zip(least, box, strict=True))
    assert abs(dual - sum(p * bound for p, (_, bound) in zip(prices, rows, strict=True)) - expected.fun) < 1e-6


@settings(deadline=None, max_examples=200, derandomize=True)
@given(programs())
def test_every_row_added_keeps_the_optimum(problem: tuple[list[float], Rows]) -> None:
    costs, rows = problem
    program = make_program(costs)
    for count in range(1, len(rows) + 1):
        row, bound = rows[count - 1]
        program.add_row(row, bound)
        if not program.copy().solve():
            break
        agrees(program, costs, rows[:count], [(0, 1)] * len(costs))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(programs(), st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=3, unique_by=lambda fixed: fixed[0]))
def test_variables_may_be_fixed_in_between(problem: tuple[list[float], Rows], fixed: list[tuple[int, bool]]) -> None:
    costs, rows = problem
    program = make_program(costs)
    for row, bound in rows:
        program.add_row(row, bound)
    if not program.solve():
        return
    box = [(0.0, 1.0)] * len(costs)
    for variable, at_one in fixed:
        if variable < len(costs):
            program.fix(variable, at_one)
            box[variable] = (float(at_one),) * 2
    agrees(program, costs, rows, box)
