"""Linear programs over the unit box that grow row by row, by the dual simplex method (Lemke 1954).

Minimise `costs · x` over `0 <= x <= 1` and rows `a · x <= b` that are added one at a time. With costs of 0 or more,
x = 0 is optimal before the first row, and each further row leaves a basis that is dual feasible: what `solve` computes
is a lower bound at every moment, also if it is stopped. Few rows are assumed: a dense dictionary is kept, of as many
columns as variables. Floats, in an order of operations that is the same everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

TOLERANCE = 1e-9
"""By how much a variable may lie outside its bounds; coefficients are expected to be of the order of 1."""
PIVOTS_PER_ROW = 50
"""Pivots after which `solve` stops, per row."""


@dataclass(slots=True)
class Program:
    """A dictionary: each basic variable is its value less its row times the variables of the columns, which are 0.

    Variables below `count` are those of the program, possibly as `1 - x` (`mirrored`); from `count` on they are the
    slacks of the rows, in the order in which those were added. `fixed` ones may not leave 0.
    """

    count: int
    costs: list[float]
    columns: list[int]
    basics: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    mirrored: list[bool] = field(default_factory=list)
    fixed: list[bool] = field(default_factory=list)

    def copy(self) -> "Program":
        """An independent program in the same state."""
        rows = [list(row) for row in self.rows]
        lists = (list(self.costs), list(self.columns), list(self.basics), rows, list(self.values))
        return Program(self.count, *lists, list(self.mirrored), list(self.fixed))

    def add_row(self, coefficients: Sequence[float], bound: float) -> None:
        """Demand that `coefficients · x <= bound`."""
        held = dict(zip(self.basics, range(len(self.basics)), strict=True))
        signed = [-a if mirrored else a for a, mirrored in zip(coefficients, self.mirrored, strict=False)]
        value = bound - sum(a for a, mirrored in zip(coefficients, self.mirrored, strict=False) if mirrored)
        row = [signed[variable] if variable < self.count else 0.0 for variable in self.columns]
        for variable, i in held.items():
            if variable < self.count and signed[variable]:
                value -= signed[variable] * self.values[i]
                row = _less(row, signed[variable], self.rows[i])
        self.basics.append(len(self.mirrored))
        self.mirrored.append(False)
        self.fixed.append(False)
        self.rows.append(row)
        self.values.append(value)

    def fix(self, variable: int, at_one: bool) -> None:
        """Hold `variable` at 1 or at 0 from now on; it must not be fixed yet."""
        if self.mirrored[variable] != at_one:
            self._mirror(variable)
        self.fixed[variable] = True

    def _mirror(self, variable: int) -> None:
        """Count `variable` from its other bound; its column must not be needed at 0 before the next pivot."""
        self.mirrored[variable] = not self.mirrored[variable]
        if variable in self.basics:
            self._mirror_row(self.basics.index(variable))
            return
        j = self.columns.index(variable)
        self.costs[j] = -self.costs[j]
        for i, row in enumerate(self.rows):
            self.values[i] -= row[j]
            row[j] = -row[j]

    def _mirror_row(self, i: int) -> None:
        self.values[i] = 1.0 - self.values[i]
        self.rows[i] = [-a for a in self.rows[i]]

    def solve(self) -> bool:
        """Restore feasibility; False if no x satisfies the rows."""
        for _ in range(PIVOTS_PER_ROW * len(self.rows)):
            i, sign = self._leaving()
            if i < 0:
                return True
            j = self._entering(i, sign)
            if j < 0:
                return False
            self._pivot(i, j)
        return True

    def _leaving(self) -> tuple[int, float]:
        """The row whose variable is farthest outside its bounds, and which way it must go; mirrored if it is above 1.

        What is fixed must come down to 0 instead.
        """
        worst, found, sign = TOLERANCE, -1, 1.0
        for i, (variable, value) in enumerate(zip(self.basics, self.values, strict=True)):
            top = 0.0 if self.fixed[variable] else 1.0
            over = value - top if variable < self.count else 0.0
            if max(-value, over) > worst:
                worst, found, sign = max(-value, over), i, 1.0 if value < 0 else -1.0
        if found >= 0 and sign < 0 and not self.fixed[self.basics[found]]:
            variable = self.basics[found]
            self.mirrored[variable] = not self.mirrored[variable]
            self._mirror_row(found)
            sign = 1.0
        return found, sign

    def _entering(self, i: int, sign: float) -> int:
        """The column that lets row `i` grow (or shrink, by `sign`) at the least cost; -1 if none does."""
        best, found, size = float("inf"), -1, 0.0
        fixed = self.fixed
        for j, a in enumerate(self.rows[i]):
            if sign * a < -TOLERANCE and not fixed[self.columns[j]]:
                ratio = self.costs[j] / -(sign * a)
                if ratio < best or (ratio == best and abs(a) > size):
                    best, found, size = ratio, j, abs(a)
        return found

    def _pivot(self, i: int, j: int) -> None:
        """Exchange the variable of row `i` with that of column `j`."""
        pivot = self.rows[i][j]
        own = [a / pivot for a in self.rows[i]]
        own[j] = 1.0 / pivot
        value = self.values[i] / pivot
        for k, row in enumerate(self.rows):
            factor = row[j]
            if k != i and factor:
                row[j] = 0.0
                self.rows[k] = _less(row, factor, own)
                self.values[k] -= factor * value
        cost = self.costs[j]
        self.costs[j] = 0.0
        self.costs = _less(self.costs, cost, own)
        self.rows[i], self.values[i] = own, value
        self.basics[i], self.columns[j] = self.columns[j], self.basics[i]

    def solution(self) -> list[float]:
        """x, each between 0 and 1."""
        x = [0.0] * self.count
        for variable, value in zip(self.basics, self.values, strict=True):
            if variable < self.count:
                x[variable] = min(max(value, 0.0), 1.0)
        return [1.0 - a if mirrored else a for a, mirrored in zip(x, self.mirrored, strict=False)]

    def prices(self) -> list[float]:
        """What one unit more of each row's bound is worth, in the order of the rows; never negative."""
        found = [0.0] * (len(self.mirrored) - self.count)
        for variable, cost in zip(self.columns, self.costs, strict=True):
            if variable >= self.count:
                found[variable - self.count] = max(cost, 0.0)
        return found


def make_program(costs: Sequence[float]) -> Program:
    """A program without rows.

    Args:
        costs: per variable, 0 or more.
    """
    count = len(costs)
    return Program(count, list(costs), list(range(count)), mirrored=[False] * count, fixed=[False] * count)


def _less(row: list[float], factor: float, other: list[float]) -> list[float]:
    return [a - factor * b for a, b in zip(row, other, strict=True)]
