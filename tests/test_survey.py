"""Surveys agree with `explain`, with the graphs and with each other; the command writes what it says."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress import costs
from fxcompress.cli import main
from fxcompress.errors import FxcompressError
from fxcompress.list_graph import list_graph
from fxcompress.options import Options
from fxcompress.passes.find_codec_nodes import find_codec_nodes
from fxcompress.pipeline import run
from fxcompress.report.data import Survey
from fxcompress.survey import survey
from fxcompress.testing_graphs import capture_module
from fxcompress.trace import explain

MODEL = """
import torch

def mlp():
    layers = [torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU()]
    return torch.nn.Sequential(*layers), (torch.randn(256, 64),)
"""


class Mlp(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x)) + x
        return x.square().mean()


class Broken(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.layers[0](x))
        torch._dynamo.graph_break()
        return F.gelu(self.layers[1](x)).square().mean()


def mlp() -> Any:
    return Mlp(), (torch.randn(256, 64),)


OPTIONS = Options(inner="aot_eager", min_bytes=1024)


@pytest.fixture(scope="module")
def swept() -> Survey:
    return survey(mlp, (), OPTIONS, target="mlp")


def test_it_shows_what_explain_plans(swept: Survey) -> None:
    plan = explain(mlp, (), OPTIONS)
    assert swept.plan == plan
    assert [view.plan for view in swept.graphs] == list(plan.graphs)
    (view,) = swept.graphs
    assert tuple(moment.live_bytes for moment in view.after.moments) == plan.graphs[0].peak_after.timeline


def test_settings_are_ordered_as_they_must_be(swept: Survey) -> None:
    points = {label: point for point in swept.points for label in point.label.split(" = ")}
    plain, given = swept.points[:2]
    assert (plain.kind, given.kind) == ("plain", "given") and plain.extra_s == 0 and plain.stored_error == 0
    assert points["exact"].stored_error == 0
    widths = ["8/8 bits", "4/4 bits", "2/2 bits"]
    saved = [points[label].saved_bytes for label in widths]
    errors = [points[label].stored_error for label in widths]
    assert saved == sorted(saved, reverse=True) and errors == sorted(errors)
    assert given.saved_bytes < plain.saved_bytes and given.extra_s > 0
    assert {"budget 75%", "budget 50%", "budget 35%"} <= points.keys()
    reached = [points[f"budget {share}%"] for share in (75, 50, 35)]
    for share, point in zip((0.75, 0.5, 0.35), reached, strict=True):
        assert point.failure or point.peak_bytes <= share * plain.peak_bytes + 4
    assert any(point.failure for point in reached) and "best tried peaks at" in reached[-1].failure


def test_without_a_sweep_there_are_two_points() -> None:
    assert len(survey(mlp, (), OPTIONS, sweep=False).points) == 2


def test_several_graphs() -> None:
    found = survey(lambda: (Broken(), (torch.randn(256, 64),)), (), OPTIONS, sweep=False)
    assert len(found.graphs) == 2
    assert found.points[0].peak_bytes >= max(view.before.peak_bytes for view in found.graphs)


def test_a_model_without_gradients() -> None:
    with pytest.raises(FxcompressError, match="without gradients"):
        survey(lambda: (Mlp().requires_grad_(False), (torch.randn(4, 64),)), (), OPTIONS)


def test_every_saved_tensor_has_a_note_in_the_listing(swept: Survey) -> None:
    (view,) = swept.graphs
    noted = [line for line in view.forward if line.note and line.kind != "codec"]
    assert len(noted) == sum(decision.codec != "shared" for decision in view.plan.decisions)
    assert any(line.kind == "codec" and line.code.startswith("encode") for line in view.forward)
    assert any(line.kind == "codec" and line.code.startswith("decode") for line in view.backward)
    assert view.forward[-1].kind == "output" and view.forward[-1].code.startswith("return")
    assert {line.kind for line in view.forward} == {"input", "node", "codec", "output"}


@pytest.mark.parametrize("outlined", [False, True])
def test_codec_nodes_are_all_that_rewriting_adds(outlined: bool) -> None:
    pair = capture_module(Mlp(), (torch.randn(256, 64),))
    before = [{node.name for node in gm.graph.nodes} for gm in (pair.fw, pair.bw)]
    assert not find_codec_nodes(pair.fw.graph) and not find_codec_nodes(pair.bw.graph)
    inner = "inductor" if outlined else "aot_eager"
    run(pair.fw, pair.bw, Options(inner=inner, min_bytes=1024), num_fwd_outputs=pair.num_fwd_outputs)
    for gm, names in zip((pair.fw, pair.bw), before, strict=True):
        added = {node for node in gm.graph.nodes if node.name not in names and node.op != "placeholder"}
        assert added and find_codec_nodes(gm.graph) == added
        assert len(list_graph(gm, {})) <= len(gm.graph.nodes)


def test_repeated_work_is_what_stands_in_both_graphs() -> None:
    pair = capture_module(Mlp(), (torch.randn(256, 64),), "default")
    assert costs.repeated_s(pair.fw, pair.bw) == 0
    again = capture_module(Mlp(), (torch.randn(256, 64),))
    names = {node.name for node in again.fw.graph.nodes} & {
        node.name for node in again.bw.graph.nodes if node.op == "call_function"
    }
    rates = costs.rates_of(torch.device("cpu"))
    expected = sum(costs.recompute_s(node, rates) for node in again.bw.graph.nodes if node.name in names)
    assert costs.repeated_s(again.fw, again.bw) == pytest.approx(expected)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "report_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "report_model", raising=False)
    return "report_model:mlp"


def test_the_command_writes_all_three_files(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["report", model, "--option", "inner=aot_eager", "--option", "min_bytes=1024", "--no-sweep", "--json"]
    assert main([*argv, "-o", "r.html", "--perfetto", "t.json", "--memory-viz", "s.pickle"]) == 0
    out, err = capsys.readouterr()
    settings = json.loads(out)["settings"]
    assert [point["kind"] for point in settings] == ["plain", "given"]
    assert all(name in err for name in ("r.html", "t.json", "s.pickle"))
    assert "report_model:mlp" in (tmp_path / "r.html").read_text()
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    peaks = [max(e["args"]["bytes"] for e in events if e["ph"] == "C" and e["pid"] == process) for process in (1, 2)]
    assert peaks == [point["peak_bytes"] for point in settings]
    assert len(pickle.loads((tmp_path / "s.pickle").read_bytes())["device_traces"]) == 2


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ["nothing to write", "--perfetto"]),
        (["-o", "no/such/folder.html", "--no-sweep"], ["no/such/folder.html", "cannot be written"]),
    ],
)
def test_bad_arguments_are_one_line(model: str, argv: list[str], words: list[str], capsys: Any) -> None:
    assert main(["report", model, "--option", "inner=aot_eager", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err
