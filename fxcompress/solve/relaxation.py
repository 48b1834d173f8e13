"""The allocation with fractions allowed: its optimum bounds every choice, and its prices say what a byte is worth when.

`Relaxation` grows a linear program by the slots that its solutions exceed. Each becomes a row that whole choices keep
and fractions need not: what they free together is one of finitely many sums (`raised`), and no item counts for more
than what is missing. Whatever the program's state, `bound` is computed from the prices of its rows alone, as the value
of the Lagrangian dual there: it holds whatever rounding did. Items that no row can tell apart (equal layers) form one
`Kind`; only how many of a kind take an option is decided.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from fxcompress.solve.knapsack import Choice, least_cost
from fxcompress.solve.simplex import Program, make_program
from fxcompress.solve.slots import Items, Option, Range, cheapest, cost_of, curve_of
from fxcompress.solve.sums import raised

WHOLE = 1e-6
"""What is nearer than this to a whole number is one."""

ROWS_AT_ONCE = 8
"""Of the slots that a solution exceeds, so many are demanded at a time."""
ROUNDS = 60
"""Times that rows are added before a bound is taken as it is."""
SLOTS_KEPT = 2
"""Of the slots with a price, for so many the bound is sharpened."""
EXCESS = 1e-7
"""By how much a fractional solution may break a row, whose bound is of the order of 1."""


@dataclass(frozen=True, slots=True)
class Column:
    """A variable: how much of option `option` item `item` takes instead of its cheapest, for `cost` more."""

    item: int
    option: int
    cost: float
    ranges: tuple[Range, ...]
    """Bytes beyond those of the cheapest."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Items with equal options, as far as slots go that can exceed the limit; `options` begins with the cheapest."""

    items: tuple[int, ...]
    options: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """`item`, the `count`-th of its kind, takes one of the options of the kind from place `rank` on, or none of them.

    In the first case so do those of the kind before it, in the second those after it do not either.
    """

    kind: Kind
    rank: int
    count: int
    likely: bool
    """Whether the first case is nearer to the fractions at hand."""


@dataclass(frozen=True, slots=True)
class Row:
    """`freed · x >= needed` at a slot, in limits; `slot` None: about the shares of one item's columns."""

    slot: int | None
    freed: tuple[float, ...]
    needed: float


@dataclass(slots=True)
class Relaxation:
    """A problem of items, the columns of its program, and the bytes per slot if every item takes its cheapest."""

    items: Items
    limit: int
    base: list[int]
    columns: list[Column]
    places: dict[tuple[int, int], int]
    kinds: list[Kind]
    curve: list[int]
    scale: float
    """Cost per unit of the program."""

    def start(self) -> "Node":
        """The program before any slot is demanded."""
        return Node(make_program([column.cost / self.scale for column in self.columns]), [], frozenset())

    def solve(self, node: "Node") -> list[float] | None:
        """Add rows until the solution exceeds no slot; the fraction of each column, or None if no solution exists."""
        for _ in range(ROUNDS):
            if not node.program.solve():
                return None
            x = node.program.solution()
            demanded = {row.slot for row in node.rows}
            exceeded = [slot for slot in self._exceeded(x) if slot not in demanded]
            rows = [*self._crowded(x), *map(self._row, exceeded)]
            if not rows:
                break
            for row in rows:
                node.demand(row)
        return x

    def _exceeded(self, x: Sequence[float]) -> list[int]:
        """The highest slot of each run of slots above the limit, the highest run first."""
        change = [0.0] * (len(self.curve) + 1)
        for column, share in zip(self.columns, x, strict=True):
            for first, last, nbytes in column.ranges if share else ():
                change[first] += share * nbytes
                change[last + 1] -= share * nbytes
        most = self.limit + EXCESS * max(self.limit, 1)
        tops: list[tuple[float, int]] = []
        before = -2
        for slot, size in enumerate(accumulate(change[:-1])):
            over = size + self.curve[slot] - most
            if over <= 0:
                continue
            if slot != before + 1:
                tops.append((over, slot))
            elif over > tops[-1][0]:
                tops[-1] = (over, slot)
            before = slot
        tops.sort(key=lambda top: (-top[0], top[1]))
        return [slot for _, slot in tops[:ROWS_AT_ONCE]]

    def _row(self, slot: int) -> Row:
        freed = [-_bytes_at(column, slot) for column in self.columns]
        groups: dict[int, list[int]] = {}
        for column, size in zip(self.columns, freed, strict=True):
            groups.setdefault(column.item, [0]).append(size)
        needed = raised(list(groups.values()), self.curve[slot] - self.limit)
        # An item that frees more than is missing, whatever the others add, frees enough: no more is counted.
        most = needed - sum(min(group) for group in groups.values())
        unit = max(self.limit, 1)
        return Row(slot, tuple(min(size, most) / unit for size in freed), needed / unit)

    def _crowded(self, x: Sequence[float]) -> list[Row]:
        """Items of which more than a whole is taken, as rows."""
        shares: dict[int, float] = {}
        for column, share in zip(self.columns, x, strict=True):
            shares[column.item] = shares.get(column.item, 0.0) + share
        full = [item for item, share in shares.items() if share > 1 + EXCESS]
        return [self.whole(item, -1.0) for item in full]

    def whole(self, item: int, sign: float) -> Row:
        """At least a whole of the item's columns is taken, or with a `sign` of -1 at most."""
        return Row(None, tuple(sign * (column.item == item) for column in self.columns), sign)

    def prices(self, node: "Node") -> dict[int, float]:
        """Cost per byte at the slots that have a price."""
        unit = self.scale / max(self.limit, 1)
        paid = zip(node.rows, node.program.prices(), strict=True)
        return {row.slot: price * unit for row, price in paid if row.slot is not None and price > 0}

    def bound(self, node: "Node") -> float:
        """No choice that the node's decisions allow and that fits costs less."""
        paid = [(row, price) for row, price in zip(node.rows, node.program.prices(), strict=True) if price > 0]
        paid = [(row, price) for row, price in paid if row.slot is not None]
        costs = [column.cost / self.scale for column in self.columns]
        for row, price in paid:
            costs = [cost - price * freed for cost, freed in zip(costs, row.freed, strict=True)]
        least = [float("inf") if (i, r) in node.refused else 0.0 for i, r in enumerate(self.base)]
        for column, cost in zip(self.columns, costs, strict=True):
            if (column.item, column.option) not in node.refused:
                least[column.item] = min(least[column.item], cost)
        value = sum(least) + sum(price * row.needed for row, price in paid)
        return cost_of(self.items, self.base) + value * self.scale

    def whole_bound(self, node: "Node") -> float:
        """As `bound`, with one slot's row kept exactly by whole choices and the others paid for; the best of them."""
        paid = self.prices(node)
        highest = self.bound(node)
        for slot in sorted(paid, key=lambda slot: -paid[slot])[:SLOTS_KEPT]:
            others = {other: price for other, price in paid.items() if other != slot}
            groups: dict[int, list[Choice]] = {}
            for column in self.columns:
                group = groups.setdefault(column.item, [(0, 0.0)])
                charge = sum(price * _bytes_at(column, other) for other, price in others.items())
                group.append((-_bytes_at(column, slot), column.cost + charge))
            least = least_cost(list(groups.values()), self.curve[slot] - self.limit)
            if least is not None:
                paid_for = sum(price * (self.curve[other] - self.limit) for other, price in others.items())
                highest = max(highest, cost_of(self.items, self.base) + least + paid_for)
        return highest

    def rounded(self, x: Sequence[float]) -> list[int]:
        """The choice nearest to a fractional one."""
        chosen, shares = list(self.base), self._shares(x)
        for kind in self.kinds:
            for rank in range(1, len(kind.options)):
                for item in kind.items[: round(self._count(kind, rank, shares))]:
                    chosen[item] = kind.options[rank]
        return chosen

    def split(self, x: Sequence[float]) -> Split | None:
        """Where to branch: the dearest count that is not whole; None if all are."""
        shares, most, found = self._shares(x), 0.0, None
        for kind in self.kinds:
            options = self.items[kind.items[0]]
            for rank in range(1, len(kind.options)):
                count = self._count(kind, rank, shares)
                apart = abs(count - round(count))
                worth = apart * max(options[kind.options[rank]].cost - options[kind.options[0]].cost, 1e-9 * self.scale)
                if apart > WHOLE and worth > most:
                    most, found = worth, Split(kind, rank, math.floor(count), count % 1 >= 0.5)
        return found

    def _shares(self, x: Sequence[float]) -> dict[tuple[int, int], float]:
        return {(c.item, c.option): share for c, share in zip(self.columns, x, strict=True)}

    def _count(self, kind: Kind, rank: int, shares: dict[tuple[int, int], float]) -> float:
        """How many of the kind take an option from place `rank` on."""
        return sum(shares[item, option] for item in kind.items for option in kind.options[rank:])


@dataclass(slots=True)
class Node:
    """A program with its rows, and the options `(item, option)` that it may not take."""

    program: Program
    rows: list[Row]
    refused: frozenset[tuple[int, int]]

    def demand(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        self.program.add_row([-freed for freed in row.freed], -row.needed)

    def decided(self, relaxation: Relaxation, split: Split, *, taken: bool) -> "Node | None":
        """A node in which a split is decided; None if an item has no option left."""
        kind, rank, count = split.kind, split.rank, split.count
        items = kind.items[: count + 1] if taken else kind.items[count:]
        options = kind.options[:rank] if taken else kind.options[rank:]
        child = Node(self.program.copy(), list(self.rows), self.refused | {(i, r) for i in items for r in options})
        for i in items:
            left = [r for r in kind.options if (i, r) not in child.refused]
            if not left:
                return None
            if kind.options[0] not in left and len(left) > 1:
                child.demand(relaxation.whole(i, 1.0))
            for r in kind.options[1:]:
                if (r not in left or len(left) == 1) and not child.program.fixed[relaxation.places[i, r]]:
                    child.program.fix(relaxation.places[i, r], r in left)
        return child


def _bytes_at(column: Column, slot: int) -> int:
    return sum(size for first, last, size in column.ranges if first <= slot <= last)


def relax(items: Items, rest: Sequence[int], limit: int) -> Relaxation:
    """Set up the relaxation of a problem whose slots are merged."""
    base = cheapest(items)
    columns = []
    for i, options in enumerate(items):
        own = options[base[i]]
        less = tuple((first, last, -nbytes) for first, last, nbytes in own.ranges)
        for r, option in enumerate(options):
            if r != base[i]:
                columns.append(Column(i, r, option.cost - own.cost, option.ranges + less))
    scale = max((column.cost for column in columns), default=0.0) or 1.0
    places = {(column.item, column.option): j for j, column in enumerate(columns)}
    return Relaxation(
        items, limit, base, columns, places, _kinds(items, rest, limit, base), curve_of(items, rest, base), scale
    )


def _kinds(items: Items, rest: Sequence[int], limit: int, base: Sequence[int]) -> list[Kind]:
    """Items with a choice by what they cost and hold at the slots that some choice puts above the limit."""
    highest = [Option(0.0, tuple(reach for option in options for reach in option.ranges)) for options in items]
    tops = curve_of([[option] for option in highest], rest, [0] * len(items))
    critical = [slot for slot, top in enumerate(tops) if top > limit]
    found: dict[tuple[tuple[int, ...], object], list[int]] = {}
    for i, options in enumerate(items):
        order = (base[i], *(r for r in range(len(options)) if r != base[i]))
        signature = tuple((options[r].cost - options[base[i]].cost, _steps(options[r], critical)) for r in order)
        if len(options) > 1:
            found.setdefault((order, signature), []).append(i)
    return [Kind(tuple(kind), order) for (order, _), kind in found.items()]


def _steps(option: Option, critical: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """An option's bytes over the critical slots, as changes at places in their list."""
    change: dict[int, int] = {}
    for first, last, nbytes in option.ranges:
        start, end = bisect_left(critical, first), bisect_left(critical, last + 1)
        if start < end:
            change[start] = change.get(start, 0) + nbytes
            change[end] = change.get(end, 0) - nbytes
    return tuple(sorted(step for step in change.items() if step[1]))
