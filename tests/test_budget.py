"""Budgets: predicted and measured peaks keep them, tighter ones shrink them, impossible ones say what is possible."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
from bench.models import loops
from fxcompress import pipeline
from fxcompress.errors import BudgetError, OptionError
from fxcompress.option_rules import parse_budget
from fxcompress.options import Options
from fxcompress.passes.liveness import Machine, find_peak
from fxcompress.plan import GraphPlan
from fxcompress.testing_graphs import capture_module, measure, run


class Mlp(nn.Module):
    def __init__(self, depth: int = 4, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x)) + x
        return x.square().mean()


BATCH = 512


def train(options: dict[str, Any], *, steps: int = 1) -> tuple[GraphPlan, list[torch.Tensor]]:
    """The plan of one compiled step, and its gradients."""
    torch.manual_seed(0)
    model = Mlp()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="actcomp", options={"inner": "aot_eager", **options})
    before = len(fxcompress.reports())
    for _ in range(steps):
        model.zero_grad()
        compiled(torch.randn(BATCH, 128, generator=torch.Generator().manual_seed(1))).backward()
    plan = fxcompress.reports()[before]
    return plan, [p.grad for p in model.parameters() if p.grad is not None]


def test_the_predicted_peak_keeps_the_budget_and_shrinks_with_it() -> None:
    peaks = []
    for budget in ("100%", "80%", "65%"):
        plan, _ = train({"budget": budget})
        (fit,) = plan.fits
        assert plan.peak_after.peak_bytes <= fit.limit_bytes
        assert fit.limit_bytes == int(fit.plain_peak_bytes * float(budget[:-1]) / 100)
        assert fit.lowest_peak_bytes <= plan.peak_after.peak_bytes
        assert fit.bound_s <= fit.code_s
        peaks.append(plan.peak_after.peak_bytes)
    assert peaks == sorted(peaks, reverse=True)


def test_a_budget_that_needs_nothing_changes_nothing() -> None:
    plan, gradients = train({"budget": "100%"})
    _, plain = train({"lossy": False})
    assert all(decision.codec in ("keep", "shared") for decision in plan.decisions)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain, strict=True))


def test_a_budget_without_lossy_codecs_recomputes_exactly() -> None:
    plan, gradients = train({"budget": "92%", "lossy": False})
    _, plain = train({"lossy": False})
    assert plan.peak_after.peak_bytes <= plan.fits[0].limit_bytes
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain, strict=True))


def test_bytes_and_shares_mean_the_same() -> None:
    share, _ = train({"budget": "80%"})
    absolute, _ = train({"budget": share.fits[0].limit_bytes})
    assert share.decisions == absolute.decisions


def test_an_impossible_budget_states_the_lowest_peak_and_that_is_reachable() -> None:
    with pytest.raises(Exception, match="lowest predicted peak found is") as caught:
        train({"budget": "1KiB"})
    text = str(caught.value)
    lowest = int(text.partition("found is ")[2].split()[0])
    plan, _ = train({"budget": math.ceil(1.05 * lowest)})
    assert plan.peak_after.peak_bytes <= 1.05 * lowest


def test_replaying_a_plan_made_for_a_budget(tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    made, gradients = train({"budget": "65%", "save_plan": path})
    again, replayed = train({"plan": path})
    assert again.fingerprint == made.fingerprint and again.decisions == made.decisions and again.fits == made.fits
    assert all(torch.equal(a, b) for a, b in zip(gradients, replayed, strict=True))
    assert json.loads(Path(path).read_text())["graphs"][0]["fits"][0]["cut"] == made.fits[0].cut


def test_symbolic_batch() -> None:
    """One plan serves every batch; the peak is that of the first one seen."""
    torch.manual_seed(0)
    model = Mlp()
    torch._dynamo.reset()
    options = {"inner": "aot_eager", "budget": "65%"}
    compiled = torch.compile(model, backend="actcomp", dynamic=True, options=options)
    before = len(fxcompress.reports())
    for batch in (BATCH, BATCH + 37):
        x = torch.randn(batch, 128)
        compiled(x).backward()
    (plan,) = fxcompress.reports()[before:]
    assert plan.peak_after.peak_bytes <= plan.fits[0].limit_bytes


def test_equal_inputs_give_equal_plans() -> None:
    assert train({"budget": "65%"})[0] == train({"budget": "65%"})[0]


def test_a_pair_without_a_joint_graph_is_fitted_too() -> None:
    """The third door: only representations can be chosen; the measured peak keeps the limit."""
    torch.manual_seed(0)
    pair = capture_module(Mlp(), (torch.randn(BATCH, 128),))
    plain = run(pair)
    before = max(max(curve.values()) for curve in measure(pair))
    options = Options(inner="aot_eager", min_bytes=1024, budget="95%")
    result = pipeline.run(pair.fw, pair.bw, options, num_fwd_outputs=pair.num_fwd_outputs)
    after = max(max(curve.values()) for curve in measure(pair))
    assert after <= 0.95 * before
    assert result.plan.fits[0].plain_peak_bytes == before
    assert torch.equal(run(pair).outputs[0], plain.outputs[0])
    assert find_peak(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(False)).peak_bytes == after


def test_what_a_call_encodes_makes_room_for_what_comes_after_it() -> None:
    """On a CPU, a graph convolution's output, encoded, ends the row of loops that its readers would run in."""

    def case() -> object:
        edges, degree, labels = loops.community_graph(communities=2, size=32)
        return loops.GCN(inputs=64, width=128, layers=3, classes=2), (torch.randn(64, 64), edges, degree, labels)

    plan = fxcompress.explain(case, options=Options(budget="65%", disable_passes=("replay_peak",)))
    (graph,) = plan.graphs
    assert graph.peak_after.peak_bytes <= graph.fits[0].limit_bytes


def test_a_pair_that_cannot_keep_a_budget_raises() -> None:
    torch.manual_seed(0)
    pair = capture_module(Mlp(), (torch.randn(BATCH, 128),))
    with pytest.raises(BudgetError, match="budget of 1000 bytes") as caught:
        pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", budget=1000), num_fwd_outputs=pair.num_fwd_outputs)
    assert caught.value.peak_bytes > 1000


@pytest.mark.parametrize(
    ("given", "read"),
    [("8GiB", 8 * 2**30), (4096, 4096), ("50%", "50%"), (" 37.5 % ", "37.5%"), ("100%", "100%"), ("050%", "50%")],
)
def test_budgets_are_read(given: object, read: object) -> None:
    assert parse_budget(given) == read
    assert Options(budget=given).budget == read  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["0%", "-5%", "%", "1e3%", "50 percent", "nan%", "1001%", True, 0.5, -1, "８%"])
def test_wrong_budgets_are_refused(wrong: object) -> None:
    with pytest.raises(OptionError, match="budget"):
        Options(budget=wrong)  # type: ignore[arg-type]


def test_a_budget_never_draws_dropout_masks_again() -> None:
    """PyTorch's cuts at its own memory budgets do: their gradients belong to other masks than the forward's."""

    def gradients(options: dict[str, Any]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.GELU()) for _ in range(4)))
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="actcomp", options={"inner": "aot_eager", "lossy": False, **options})
        x = torch.randn(BATCH, 64)
        torch.manual_seed(1)
        compiled(x).square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain = gradients({})
    for budget in ("90%", "80%"):
        assert all(torch.equal(a, b) for a, b in zip(gradients({"budget": budget}), plain, strict=True))
