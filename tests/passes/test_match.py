"""A stored plan fits exactly or not at all: every field, at every place, against brute force."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from fxcompress.errors import PlanError
from fxcompress.facts import SavedTensor
from fxcompress.passes.match import find_graph_plan, match
from fxcompress.plan import Plan

DECIDES = ("name", "storage", "op", "shape", "stride", "dtype", "need", "values")
OTHER = {
    "name": "another", "storage": "another", "op": "aten.another", "shape": (1, 2), "stride": (7, 7),
    "dtype": "float16", "need": "other", "values": "{0,1}/9",
}  # fmt: skip
FREE = [field.name for field in fields(SavedTensor) if field.name not in DECIDES]


def saved(plan: Plan) -> list[SavedTensor]:
    return [decision.tensor for decision in plan.graphs[0].decisions]


def test_its_own_tensors_fit(plan: Plan) -> None:
    found = match(plan.graphs[0], saved(plan), "here")
    assert list(found.values()) == list(plan.graphs[0].decisions)
    assert list(found) == [tensor.name for tensor in saved(plan)]
    assert match(plan.graphs[0], saved(plan), "here") == found


@pytest.mark.parametrize("field", DECIDES)
def test_every_difference_at_every_place_is_named(plan: Plan, field: str) -> None:
    for position, tensor in enumerate(saved(plan)):
        changed = saved(plan)
        changed[position] = replace(tensor, **{field: OTHER[field]})  # type: ignore[arg-type]
        with pytest.raises(PlanError, match=rf"^here: decision {position} \('{tensor.name}'\): {field} is"):
            match(plan.graphs[0], changed, "here")


@pytest.mark.parametrize("field", ["layer", "source", "nbytes", "storage_nbytes", "consumers", "refusal"])
def test_where_the_code_stands_does_not_matter(plan: Plan, field: str) -> None:
    assert field in FREE
    changed = saved(plan)
    changed[3] = replace(changed[3], **{field: 5 if "bytes" in field else ("x",) if field == "consumers" else "x"})  # type: ignore[arg-type]
    assert match(plan.graphs[0], changed, "here")


def test_the_first_of_several_differences_is_named(plan: Plan) -> None:
    changed = [replace(tensor, dtype="float16") for tensor in saved(plan)]
    with pytest.raises(PlanError, match=r"decision 0 .*: dtype is 'float32' in the plan and 'float16' in the graph"):
        match(plan.graphs[0], changed, "here")


@pytest.mark.parametrize("count", [0, 1, 15, 17])
def test_another_number_of_tensors_is_refused(plan: Plan, count: int) -> None:
    tensors = (saved(plan) * 2)[:count]
    with pytest.raises(PlanError, match=f"decides on 16 tensors, the graph saves {count}"):
        match(plan.graphs[0], tensors, "here")


def test_nothing_saved_fits_a_plan_of_nothing(plan: Plan) -> None:
    assert match(replace(plan.graphs[0], decisions=()), [], "here") == {}


def numbered(plan: Plan, count: int) -> Plan:
    return replace(plan, graphs=tuple(replace(plan.graphs[0], fingerprint=f"{i:016x}") for i in range(count)))


def test_the_fingerprint_selects(plan: Plan) -> None:
    file = numbered(plan, 3)
    for graph in file.graphs:
        assert find_graph_plan(file, graph.fingerprint, "inductor", "here") is graph


@pytest.mark.parametrize("count", [0, 2])
def test_an_unknown_fingerprint_is_refused_with_those_at_hand(plan: Plan, count: int) -> None:
    file = numbered(plan, count)
    known = ", ".join(graph.fingerprint for graph in file.graphs) or "none"
    with pytest.raises(PlanError, match=rf"^here: no plan .*fingerprint abc; the file holds: {known}\)"):
        find_graph_plan(file, "abc", "inductor", "here")


@pytest.mark.parametrize(
    "made, words",
    [
        ({"options": (("inner", "aot_eager"),)}, "made with inner='aot_eager', here it is 'inductor'"),
        ({"torch_version": "1.0"}, "made with PyTorch 1.0, here it is"),
        ({"torch_version": str(torch.__version__)}, "its input shapes differ"),
    ],
)
def test_what_else_was_different_is_named(plan: Plan, made: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        find_graph_plan(replace(plan, **made), "abc", "inductor", "here")
