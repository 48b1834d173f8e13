"""The device benchmark at toy size on the CPU, and what its supervisor does with crashes, hangs and old rows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.device import rows, supervise
from bench.device.codecs import compare
from bench.device.section import Measured, Scale, Section, Skipped
from bench.device.sections import SECTIONS
from bench.device.summary import print_summary, text_of, text_table
from bench.device.worker import Order, read_order, run_case
from bench.models.large import LARGE
from bench.recompute import Recomputed, recomputing
from bench.trial import Job
from bench.variants import Variant, in_graphs, variants
from fxcompress import codecs
from fxcompress.codecs.affine import Affine

TOY = Scale("cpu", "aot_eager", True)
LIKE = {"commit": "c", "dirty": False, "device": "d", "torch": "t", "triton": "", "scale": "cpu aot_eager toy"}
ROOT = supervise.ROOT


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_case_of_every_section_runs(section: Section) -> None:
    for name, case in section.cases(TOY).items():
        row, poisoned = run_case(case)
        assert "error" not in row and row.get("ok", True) and not poisoned, (name, row)
        json.dumps(row, allow_nan=False)
        if "skipped" not in row:
            return
    assert section.name == "families", f"every case of {section.name} is skipped"


def test_nothing_but_torch_is_needed() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('rich', 'transformers', 'sklearn', 'hypothesis', 'pytest')))\n"
        "import bench.device.__main__, bench.device.worker as worker\n"
        "from bench.device.section import Scale\n"
        "cases = {s.name: s.cases(Scale('cuda', 'inductor', False)) for s in worker.SECTIONS}\n"
        "assert all(cases.values())\n"
        "(name, case) = next(item for item in cases['families'].items())\n"
        "assert 'skipped' in worker.run_case(case)[0], worker.run_case(case)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_command_measures_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "bench.device", "--toy", "--sections", "copy", "--json", str(out)]
    first = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert first.returncode == 0, first.stdout + first.stderr
    written = out.read_text()
    assert [json.loads(line)["case"] for line in written.splitlines()] == ["256 MiB", "1024 MiB", "64 MiB"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0 and out.read_text() == written
    assert "Copies: 3 right" in again.stdout and "Copies: 3 right" in first.stdout


BEHAVIOUR = """
import sys, time, os, json
order = json.loads(sys.stdin.read())
for name in order["names"]:
    if name.startswith("hang"):
        time.sleep(60)
    if name.startswith("crash"):
        print("last words", flush=True)
        os._exit(7)
    with open(order["out"], "a") as file:
        file.write(json.dumps({**order["about"], "section": order["section"], "case": name}) + "\\n")
    if name.startswith("poison"):
        sys.exit(3)
"""
"""Stands in for `bench.device.worker`: each case does what its name says."""


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, rows.Row]]:
    """Run named cases under the supervisor; returns their rows."""
    script = tmp_path / "behave.py"
    script.write_text(BEHAVIOUR)
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **named: popen([sys.executable, str(script)], **named))

    def run(*names: str, seconds: float = 30, case_s: float = 30, isolated: bool = False) -> dict[str, rows.Row]:
        out = tmp_path / "rows.jsonl"
        section = Section("s", "S", (), seconds, case_s, lambda scale: {}, isolated=isolated)
        order = Order("s", names, Scale("cuda", "inductor", False), str(out), LIKE)
        supervise.run_section(section, order, seconds, lambda: rows.newest(out, LIKE))
        return {name: row for (_, name), row in rows.newest(out, LIKE).items()}

    return run


def test_a_crash_is_a_row_and_the_rest_still_runs(supervised: Callable[..., dict[str, rows.Row]]) -> None:
    found = supervised("a", "crash", "b", "poisoned", "c")
    assert set(found) == {"a", "crash", "b", "poisoned", "c"}
    assert found["crash"]["error"] == "process ended with 7: last words"
    assert all("error" not in row for name, row in found.items() if name != "crash")


def test_a_hanging_case_is_killed_alone_when_isolated(supervised: Callable[..., dict[str, rows.Row]]) -> None:
    start = time.monotonic()
    found = supervised("hang", "a", isolated=True, case_s=0.5)
    assert found["hang"]["error"] == "killed: out of time" and "error" not in found["a"]
    assert time.monotonic() - start < 20


def test_a_section_ends_in_time_and_says_what_it_did_not_reach(
    supervised: Callable[..., dict[str, rows.Row]],
) -> None:
    start = time.monotonic()
    found = supervised("a", "hang", "b", seconds=2)
    assert time.monotonic() - start < 20
    assert found["hang"]["error"] == "killed: out of time"
    assert found["b"]["error"].startswith("not started")


def test_an_error_a_skip_and_a_poisoned_context_are_told_apart() -> None:
    def raising(error: Exception) -> Callable[[], Measured]:
        def case() -> Measured:
            raise error

        return case

    assert run_case(lambda: {"x": 1}) == ({"x": 1}, False)
    assert run_case(raising(Skipped("no"))) == ({"skipped": "no"}, False)
    row, poisoned = run_case(raising(ValueError("bad\nnews")))
    assert row["error"] == "ValueError: bad news" and not poisoned
    assert "in case" in row["traceback"]
    assert run_case(raising(RuntimeError("CUDA error: illegal address")))[1]


def test_an_order_survives_its_text() -> None:
    order = Order("s", ("a", "b"), TOY, "out", {"commit": "c"})
    assert read_order(order.to_json()) == order


def test_rows_of_another_commit_failed_rows_and_broken_lines_answer_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{**LIKE, "commit": "other", "section": "s", "case": "a"}, {**LIKE, "section": "s", "case": "b"}]
    lines.append({**LIKE, "section": "s", "case": "c", "error": "E"})
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"section": "s", "ca')
    found = rows.newest(path, LIKE)
    assert set(found) == {("s", "b"), ("s", "c")}
    assert rows.is_answer(found["s", "b"]) and not rows.is_answer(found["s", "c"]) and not rows.is_answer(None)


def test_a_codec_that_decodes_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, decode, calls = codecs.make("affine", bits=4), Affine.decode, []
    assert compare(codec, torch.float32, "eager", TOY)["ok"]

    def biased(self: Affine, *arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return decode(self, *arguments) + (0.5 if len(calls) == 1 else 0)

    monkeypatch.setattr(Affine, "decode", biased)
    found = compare(codec, torch.float32, "eager", TOY)
    assert not found["ok"] and found["elements_wrong"] == 3 * 1000 and found["payload_bytes_wrong"] == 0


def test_the_summary_shows_ratios_failures_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    section = Section(
        "s", "Steps", ("step_s", "step_s/plain"), 1, 1,
        lambda scale: dict.fromkeys(("m plain", "m ours", "m bad", "m later"), dict),
    )  # fmt: skip
    found = {
        ("s", "m plain"): {"step_s": 0.002},
        ("s", "m ours"): {"step_s": 0.003},
        ("s", "m bad"): {"error": "it broke"},
    }
    assert not print_summary([section], TOY, found)
    text = capsys.readouterr().out
    assert "2 right, 1 FAILED, 1 not reached" in text
    assert "3.000 ms  1.500" in text and "it broke" in text


def test_text_has_units() -> None:
    assert text_of("peak_bytes", 2_500_000) == "2.5 MB" and text_of("step_s", 0.25) == "250.000 ms"
    assert text_of("gb_per_s", 3.5) == "3.500" and text_of("batch", 8) == "8" and text_of("x", None) == "–"
    assert text_table(("a", "b"), [("long", "x")]) == ["a     b", "long  x"]


@pytest.mark.parametrize("name", LARGE)
def test_large_models_train_and_recomputing_gives_the_same_gradients(name: str) -> None:
    module, args = LARGE[name](4, True)
    job = Job(module.train(), args)
    expected = job.gradient_step(module)()
    twin = recomputing(module)
    assert any(isinstance(part, Recomputed) for part in twin.modules())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in module.parameters()}
    for one, two in zip(job.gradient_step(twin)(), expected, strict=True):
        assert torch.equal(one, two)


def test_a_module_without_blocks_is_recomputed_whole() -> None:
    assert isinstance(recomputing(nn.Linear(2, 2)), Recomputed)
    compiled = Variant("checkpoint", "eager", recompute=True).compile(nn.Linear(2, 2))
    assert compiled(torch.ones(1, 2)).shape == (1, 2)


def test_section_names_are_distinct() -> None:
    names = [section.name for section in SECTIONS]
    assert len(set(names)) == len(names)


def test_what_times_waits_for_what_compiles_and_the_other_way_round(tmp_path: Path) -> None:
    out = tmp_path / "order"
    code = (
        "import sys, time; from bench.device import turns\n"
        "def note(text): open(sys.argv[1], 'a').write(text + '\\n')\n"
        "with turns.together():\n    note('compiles'); time.sleep(1)\n"
        "with turns.alone():\n    note('times'); time.sleep(0.2); note('timed')\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    noted = out.read_text().split()
    assert noted.count("compiles") == 2 and [one for one in noted if one != "compiles"] == ["times", "timed"] * 2


def test_variants_in_graphs_differ_in_nothing_else() -> None:
    ours, plain = (in_graphs(variants()[name]) for name in ("actcomp-8bit", "budget-0.5"))
    assert ours.options == {"bits": 8, "mode": "reduce-overhead"} and ours.name == "actcomp-8bit+graphs"
    assert plain.options == {"triton.cudagraphs": True} and plain.functorch
