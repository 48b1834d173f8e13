import errno
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxcompress import plan_io
from fxcompress.error_table import ErrorTable
from fxcompress.errors import PlanError
from fxcompress.plan import Plan
from fxcompress.plan_diff import diff
from fxcompress.plan_io import dumps, load, load_errors, loads, save

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def with_decision(plan: Plan, number: int, **changes: Any) -> Plan:
    graph = plan.graphs[0]
    changed = replace(graph.decisions[number], **changes)
    decisions = (*graph.decisions[:number], changed, *graph.decisions[number + 1 :])
    return replace(plan, graphs=(replace(graph, decisions=decisions),))


def test_text_and_plan_are_each_others_image(plan: Plan):
    text = dumps(plan)
    assert loads(text) == plan
    assert dumps(loads(text)) == text
    assert text.endswith("}\n") and text.isascii()


def test_unusual_values_survive(plan: Plan):
    odd = with_decision(
        plan, 3, reason='ü "quoted" \ud800 \x1b[0m', params=(("z", -1), ("a", 0.1), ("b", True), ("c", "x"))
    )
    assert loads(dumps(odd)) == odd


def test_lists_of_numbers_stay_on_one_line(plan: Plan):
    assert '"timeline": [1, 2, 3]' in dumps(plan)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [1]])
def test_what_json_cannot_say_is_not_written(plan: Plan, value: object):
    with pytest.raises(PlanError):
        dumps(with_decision(plan, 0, params=(("a", value),)))


def test_a_parameter_given_twice_is_not_written(plan: Plan):
    with pytest.raises(PlanError, match="'a' is given twice"):
        dumps(with_decision(plan, 0, params=(("a", 1), ("a", 2))))


DECISION = ("graphs", 0, "decisions", 3)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ((*DECISION, "nbytes"), "x", 'graphs[0].decisions[3].nbytes: expected a non-negative integer, found "x"'),
        ((*DECISION, "nbytes"), -1, "expected a non-negative integer, found -1"),
        ((*DECISION, "nbytes"), 2**63, "expected a non-negative integer, found 9223372036854775808"),
        ((*DECISION, "nbytes"), True, "expected a non-negative integer, found true"),
        ((*DECISION, "nbytes"), 1.0, "expected a non-negative integer, found 1.0"),
        (DECISION, [], "graphs[0].decisions[3]: expected an object, found a list"),
        ((*DECISION, "tensor", "need"), "operands", "decisions[3].tensor.need: expected one of 'predicate'"),
        ((*DECISION, "tensor", "need"), [], "expected one of 'predicate'"),
        (
            (*DECISION, "tensor", "shape", 1),
            None,
            "decisions[3].tensor.shape[1]: expected a non-negative integer or a string",
        ),
        ((*DECISION, "params", "bits"), [1], "decisions[3].params.bits: expected an integer or"),
        ((*DECISION, "params"), [["bits", 4]], "params: expected an object, found a list"),
        (("graphs", 0, "peak_before"), None, "graphs[0].peak_before: expected an object, found null"),
        (("graphs",), {}, "graphs: expected a list, found an object"),
        (("options",), 1, "options: expected an object"),
        (("schema_version",), 1, "schema_version: expected 5, found 1"),
        (("schema_version",), True, "schema_version: expected 5, found true"),
        (("torch_version",), 2.13, "torch_version: expected a string, found 2.13"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(plan: Plan, path: tuple[str | int, ...], value: object, message: str):
    content: Any = json.loads(dumps(plan))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(PlanError) as caught:
        loads(json.dumps(content), "p.json")
    assert str(caught.value).startswith("p.json: ") and message in str(caught.value)


@pytest.mark.parametrize("name", [field.name for field in fields(Plan)])
def test_a_missing_field_is_named(plan: Plan, name: str):
    content = json.loads(dumps(plan))
    del content[name]
    with pytest.raises(PlanError, match=name):
        loads(json.dumps(content))


def test_an_unknown_field_is_named_with_the_nearest(plan: Plan):
    text = dumps(plan).replace('"peak_before"', '"peak_befor"')
    with pytest.raises(PlanError, match=r"graphs\[0\].peak_befor: unknown field; did you mean 'peak_before'"):
        loads(text)


def test_a_repeated_key_is_named_with_its_place(plan: Plan):
    text = dumps(plan).replace('"need": "predicate"', '"need": "operand", "need": "predicate"')
    with pytest.raises(PlanError, match=r"graphs\[0\].decisions\[12\].tensor.need: given twice"):
        loads(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not a JSON plan"),
        ("not json", "not a JSON plan"),
        ("{} {}", "not a JSON plan"),
        ("[]", "top level: expected an object"),
        ("null", "top level: expected an object"),
        ("{}", "schema_version"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "out of range"),
        ('{"a": ' + "9" * 5000 + "}", "not a JSON plan"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"schema_version": 5, "schema_version": 5}', "schema_version"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str):
    with pytest.raises(PlanError, match=message):
        loads(text)


def test_a_table_of_errors_and_a_plan_are_not_taken_for_each_other(plan: Plan, tmp_path: Path):
    table, file = tmp_path / "errors.json", tmp_path / "plan.json"
    table.write_text(dumps(ErrorTable((), "0.1.0", "2.13.0")))
    file.write_text(dumps(plan))
    with pytest.raises(PlanError, match="is a table of errors, not a plan"):
        load(table)
    with pytest.raises(PlanError, match="is a plan, not a table of errors"):
        load_errors(file)


def test_every_truncation_is_refused(plan: Plan):
    text = dumps(plan)
    for end in range(0, len(text) - 2, 97):
        with pytest.raises(PlanError):
            loads(text[:end])


def test_a_huge_text_is_refused_before_it_is_read(plan: Plan, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(plan_io, "MAX_TEXT", 100)
    with pytest.raises(PlanError, match="longer than 100 bytes"):
        loads(dumps(plan))
    (tmp_path / "p.json").write_text(dumps(plan))
    with pytest.raises(PlanError, match="longer than 100 bytes"):
        load(tmp_path / "p.json")


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_plan_is_read_or_refused_but_nothing_else(plan: Plan, data: st.DataObject):
    content: Any = json.loads(dumps(plan))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(_places(content)[1:] or [("graphs",)]))
        place = content
        for step in path[:-1]:
            place = place[step]
        if isinstance(place, dict) and data.draw(st.booleans()):
            place.pop(path[-1], None)
            place[data.draw(st.text(max_size=4))] = data.draw(JSON)
        else:
            place[path[-1]] = data.draw(JSON)
    try:
        read = loads(json.dumps(content))
    except PlanError:
        return
    assert loads(dumps(read)) == read
    assert diff(read, read).equal


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.tuples(st.integers(0, 9000), st.integers(0, 30)), patch=st.text(max_size=6))
def test_a_garbled_text_is_read_or_refused_but_nothing_else(plan: Plan, cut: tuple[int, int], patch: str):
    text = dumps(plan)
    start, length = cut
    try:
        loads(text[:start] + patch + text[start + length :])
    except PlanError as error:
        assert len(str(error)) < 1000


def test_save_and_load(plan: Plan, tmp_path: Path):
    path = tmp_path / "p.json"
    save(path, plan)
    assert load(path) == plan
    assert path.read_text() == dumps(plan)
    assert os.listdir(tmp_path) == ["p.json"]


def test_save_follows_a_link_and_keeps_it(plan: Plan, tmp_path: Path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    save(tmp_path / "link.json", plan)
    assert (tmp_path / "link.json").is_symlink()
    assert load(tmp_path / "real.json") == plan


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_good_file(plan: Plan, tmp_path: Path, monkeypatch, broken: str):
    path = tmp_path / "p.json"
    save(path, plan)

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "write":
        monkeypatch.setattr(plan_io, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, broken, fail)
    with pytest.raises(PlanError, match=r"p.json: plan cannot be written: No space left"):
        save(path, replace(plan, torch_version="other"))
    monkeypatch.undo()
    assert load(path) == plan
    assert os.listdir(tmp_path) == ["p.json"]


def test_an_interrupted_save_leaves_the_good_file(plan: Plan, tmp_path: Path, monkeypatch):
    path = tmp_path / "p.json"
    save(path, plan)

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, replace(plan, torch_version="other"))
    assert load(path) == plan
    assert os.listdir(tmp_path) == ["p.json"]


def test_a_place_that_cannot_be_written_is_an_error(plan: Plan, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "missing" / "p.json", tmp_path / "file" / "p.json", "a\0b"):
        with pytest.raises(PlanError, match="cannot be written"):
            save(path, plan)


FILL = """
import resource, signal, sys
from fxcompress.error_table import ErrorTable
from fxcompress.errors import PlanError
from fxcompress.plan_io import load, save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
plan = load(sys.argv[1])
try:
    save(sys.argv[1], plan)
except PlanError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_file_that_runs_full_half_way_leaves_the_good_one(plan: Plan, tmp_path: Path):
    path = tmp_path / "p.json"
    save(path, plan)
    done = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    assert load(path) == plan
    assert os.listdir(tmp_path) == ["p.json"]


@pytest.mark.parametrize("name", ["missing.json", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(PlanError):
        load(f"{tmp_path}/{name}")


def test_a_binary_file_is_an_error(tmp_path: Path):
    (tmp_path / "p.json").write_bytes(b"\x80\x04\x95")
    with pytest.raises(PlanError, match=r"p\.json: not a JSON plan"):
        load(tmp_path / "p.json")


def test_equal_plans_have_no_difference(plan: Plan):
    assert diff(plan, plan) == diff(plan, loads(dumps(plan)))
    found = diff(plan, plan)
    assert found.equal and not found.changes and not found.layers and not found.graphs


def test_a_changed_decision_is_named_with_its_bytes(plan: Plan):
    other = with_decision(plan, 2, codec="keep", params=(), nbytes=32768)
    found = diff(plan, other)
    assert not found.equal
    assert found.first == 'graphs[0].decisions[2].codec: "affine" → "keep"'
    (change,) = found.changes
    assert change.before == plan.graphs[0].decisions[2] and change.after == other.graphs[0].decisions[2]
    assert "nbytes: 4352 → 32768" in change.fields and "params.bits: only in the first" in change.fields
    (layer,) = found.layers
    assert (layer.layer, layer.nbytes_before, layer.nbytes_after) == ("h.2.mlp", 4352, 32768)


def test_a_tensor_only_one_plan_saves_does_not_shift_the_others(plan: Plan):
    graph = plan.graphs[0]
    other = replace(plan, graphs=(replace(graph, decisions=graph.decisions[1:]),))
    found = diff(plan, other)
    (change,) = found.changes
    assert change.before == graph.decisions[0] and change.after is None
    (change,) = diff(other, plan).changes
    assert change.before is None and change.after == graph.decisions[0]


def test_graphs_are_matched_by_fingerprint_not_by_place(plan: Plan):
    second = replace(plan.graphs[0], fingerprint="second", decisions=plan.graphs[0].decisions[:3])
    both, swapped = replace(plan, graphs=(*plan.graphs, second)), replace(plan, graphs=(second, *plan.graphs))
    found = diff(both, swapped)
    assert not found.equal and found.first and not found.changes and not found.graphs


def test_graphs_without_partner_are_named(plan: Plan):
    renamed = replace(plan, graphs=(replace(plan.graphs[0], fingerprint="other"),))
    found = diff(plan, renamed)
    assert len(found.graphs) == 1 and "0123456789abcdef → other" in found.graphs[0] and not found.changes
    found = diff(plan, replace(plan, graphs=()))
    assert found.graphs == ("graph 0123456789abcdef only in the first plan",)
    assert len(found.changes) == len(plan.graphs[0].decisions)


def test_a_difference_outside_decisions_is_a_difference(plan: Plan):
    found = diff(plan, replace(plan, options=(("bits", 4.0), *plan.options[1:])))
    assert found.first == "options.bits: 4 → 4.0" and not found.changes
