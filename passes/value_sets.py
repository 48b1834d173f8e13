"""Sets of whole numbers that a tensor's elements can lie in: arithmetic progressions, and how they join.

The algebra behind `values`. Torch-free.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ValueSet:
    """Elements lie in `{lo + step·k : 0 ≤ k < count}`; `count == 0` means only the sign is known.

    A finite set holds neither NaN nor -0.0.
    """

    lo: int = 0
    step: int = 1
    count: int = 0
    nonnegative: bool = False

    @property
    def finite(self) -> bool:
        return self.count > 0

    @property
    def hi(self) -> int:
        return self.lo + self.step * (self.count - 1)

    def __contains__(self, value: int) -> bool:
        return self.finite and self.lo <= value <= self.hi and (value - self.lo) % self.step == 0

    def __str__(self) -> str:
        if not self.finite:
            return "≥0" if self.nonnegative else ""
        if self.count <= 3:
            return "{" + ",".join(str(self.lo + self.step * k) for k in range(self.count)) + "}"
        return f"[{self.lo},{self.hi}]" + (f"/{self.step}" if self.step != 1 else "")


UNKNOWN = ValueSet()
NONNEGATIVE = ValueSet(nonnegative=True)
MAX_COUNT = 1 << 31


def of_range(lo: int, hi: int, step: int = 1) -> ValueSet:
    count = (hi - lo) // step + 1
    return ValueSet(lo, step, count, lo >= 0) if 0 < count <= MAX_COUNT else UNKNOWN


def of_points(points: set[int]) -> ValueSet:
    """The tightest progression that contains `points`."""
    lo, hi = min(points), max(points)
    step = math.gcd(*(p - lo for p in points)) or 1
    return of_range(lo, hi, step)


def join(a: ValueSet, b: ValueSet) -> ValueSet:
    """What holds of an element that lies in `a` or in `b`."""
    if a.finite and b.finite:
        step = math.gcd(a.step if a.count > 1 else 0, b.step if b.count > 1 else 0, abs(a.lo - b.lo)) or 1
        return of_range(min(a.lo, b.lo), max(a.hi, b.hi), step)
    return NONNEGATIVE if a.nonnegative and b.nonnegative else UNKNOWN


def product_of(a: ValueSet, b: ValueSet) -> ValueSet:
    """All products of an element of finite `a` and one of finite `b`."""
    if a.count * b.count <= 64:
        return of_points({(a.lo + a.step * i) * (b.lo + b.step * j) for i in range(a.count) for j in range(b.count)})
    ends = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return of_range(min(ends), max(ends))


def sum_of(a: ValueSet, b: ValueSet) -> ValueSet:
    """All sums of an element of `a` and one of `b`."""
    if a.finite and b.finite:
        step = math.gcd(a.step if a.count > 1 else 0, b.step if b.count > 1 else 0) or 1
        return of_range(a.lo + b.lo, a.hi + b.hi, step)
    return NONNEGATIVE if a.nonnegative and b.nonnegative else UNKNOWN
