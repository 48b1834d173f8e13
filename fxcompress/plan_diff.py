"""What differs between two plans: per decision, by layer in bytes, and the first difference by its place. Torch-free.

Graphs are matched by fingerprint; those left over are matched in order, since other options can mean another cut of the
same joint graph. Within a graph, tensors are matched by name.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fxcompress.plan import Decision, GraphPlan, Plan
from fxcompress.plan_io import Json, to_json

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor that the two plans treat differently; `before` or `after` is None where it is not saved at all."""

    graph: str
    before: Decision | None
    after: Decision | None
    fields: tuple[str, ...]
    """The differing fields as `codec: keep → affine`."""


@dataclass(frozen=True, slots=True)
class LayerDelta:
    """Payload bytes of all tensors of one layer under either plan."""

    layer: str
    nbytes_before: int
    nbytes_after: int


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """All differences; `first` is empty exactly when the plans are equal."""

    first: str
    graphs: tuple[str, ...]
    """One line per graph whose fingerprint has no partner."""
    changes: tuple[Change, ...]
    layers: tuple[LayerDelta, ...]
    saved_bytes_before: int
    saved_bytes_after: int
    """Saved bytes of all graphs under either plan, as rewritten."""

    @property
    def equal(self) -> bool:
        """Whether the two plans are the same in every field."""
        return not self.first


def diff(before: Plan, after: Plan) -> PlanDiff:
    """Compare two plans."""
    pairs = _pair(before.graphs, after.graphs, lambda graph: graph.fingerprint, leftovers=True)
    changes = tuple(change for pair in pairs for change in _graph_changes(*pair))
    return PlanDiff(
        first=next(differences(to_json(before), to_json(after)), ""),
        graphs=tuple(line for pair in pairs if (line := _graph_line(*pair))),
        changes=changes,
        layers=_by_layer(changes),
        saved_bytes_before=sum(graph.saved_bytes_after for graph in before.graphs),
        saved_bytes_after=sum(graph.saved_bytes_after for graph in after.graphs),
    )


def differences(before: Json, after: Json, place: str = "") -> Iterator[str]:
    """Yield every place at which two JSON forms differ, as `graphs[0].decisions[3].codec: "keep" → "affine"`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            inner = f"{place}.{key}" if place else key
            if key not in before or key not in after:
                yield f"{inner}: only in the {'first' if key in before else 'second'}"
            else:
                yield from differences(before[key], after[key], inner)
    elif isinstance(before, list) and isinstance(after, list):
        for i, (left, right) in enumerate(zip(before, after, strict=False)):
            yield from differences(left, right, f"{place}[{i}]")
        if len(before) != len(after):
            yield f"{place}: {len(before)} → {len(after)} entries"
    elif before != after or type(before) is not type(after):
        yield f"{place}: {_shown(before)} → {_shown(after)}"


def _shown(value: Json) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)


def _graph_line(before: GraphPlan | None, after: GraphPlan | None) -> str:
    if before is None or after is None:
        graph, which = (before, "first") if after is None else (after, "second")
        return f"graph {graph.fingerprint if graph else ''} only in the {which} plan"
    if before.fingerprint != after.fingerprint:
        return f"graph {before.fingerprint} → {after.fingerprint}: other graphs, tensors matched by name alone"
    return ""


def _graph_changes(before: GraphPlan | None, after: GraphPlan | None) -> Iterator[Change]:
    graph = before or after
    assert graph is not None
    left = before.decisions if before else ()
    right = after.decisions if after else ()
    for old, new in _pair(left, right, lambda decision: decision.tensor.name):
        if old is None or new is None:
            yield Change(
                graph.fingerprint, old, new, ("saved only in the " + ("first" if old else "second") + " plan",)
            )
        elif old != new:
            yield Change(graph.fingerprint, old, new, tuple(differences(to_json(old), to_json(new))))


def _pair(
    before: Sequence[T], after: Sequence[T], key: Callable[[T], str], *, leftovers: bool = False
) -> list[tuple[T | None, T | None]]:
    """Match equal keys (the k-th occurrence with the k-th), in the order of `before`, then what is only in `after`."""
    waiting: dict[str, list[T]] = defaultdict(list)
    for item in after:
        waiting[key(item)].append(item)
    pairs: list[tuple[T | None, T | None]] = []
    for item in before:
        partners = waiting[key(item)]
        pairs.append((item, partners.pop(0) if partners else None))
    rest = [item for items in waiting.values() for item in items]
    if leftovers:
        pairs = [(old, rest.pop(0) if new is None and rest else new) for old, new in pairs]
    return pairs + [(None, item) for item in rest]


def _by_layer(changes: Sequence[Change]) -> tuple[LayerDelta, ...]:
    totals: dict[str, list[int]] = {}
    for change in changes:
        for side, decision in enumerate((change.before, change.after)):
            if decision is not None:
                totals.setdefault(decision.tensor.layer, [0, 0])[side] += decision.nbytes
    return tuple(LayerDelta(layer, *sums) for layer, sums in totals.items() if sums[0] != sums[1])
