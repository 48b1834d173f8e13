"""One budget for several graphs: the step's predicted peak keeps it, and so does what replays the plan."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
from fxcompress import plan_io, trace
from fxcompress.compat import FakeTensorMode
from fxcompress.errors import BudgetError
from fxcompress.footprint import stacked_peak
from fxcompress.options import Options
from fxcompress.shared_budget import needs_of, share_budget
from fxcompress.watch import partitioner_for

OPTIONS = Options(inner="aot_eager", min_bytes=1024)


class Broken(nn.Module):
    """Two graphs of unlike size: the second saves about three times as much as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.layers[0](x)) + x
        torch._dynamo.graph_break()
        for layer in self.layers[1:]:
            x = F.gelu(layer(x)) + x
        return x.square().mean()


def case() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return Broken(), (torch.randn(256, 64),)


def plain_peak() -> int:
    with FakeTensorMode():
        module, args = case()
        return stacked_peak(needs_of((module, args, {}), partitioner_for(None, "aot_eager"), "aot_eager"))


@pytest.mark.slow
def test_the_step_keeps_the_budget_that_its_graphs_share(tmp_path: Path) -> None:
    plan = fxcompress.explain(case, options=replace(OPTIONS, budget="85%"))
    assert len(plan.graphs) == 2
    first, second = (graph.fits[0].limit_bytes for graph in plan.graphs)
    assert first < second, "the graph that saves more gets more"
    path = str(tmp_path / "plan.json")
    plan_io.save(path, plan)
    with FakeTensorMode():
        module, args = case()
        needs = needs_of(
            (module, args, {}), partitioner_for(Options(inner="aot_eager", plan=path), "aot_eager"), "aot_eager"
        )
    assert stacked_peak(needs) <= 0.85 * plain_peak()


@pytest.mark.slow
def test_what_cannot_be_shared_states_the_lowest_peak() -> None:
    with FakeTensorMode():
        module, args = case()
        step = module, args, {}
        plain = needs_of(step, partitioner_for(None, "aot_eager"), "aot_eager")
        with pytest.raises(BudgetError, match="for 2 graphs: the lowest predicted peak found is"):
            share_budget(step, Options(inner="aot_eager", min_bytes=1024, budget=1000), plain)


def test_one_graph_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shared, and the model is traced once."""
    monkeypatch.setattr(trace, "share_budget", lambda *args: pytest.fail("shared"))

    def whole() -> tuple[nn.Module, tuple[torch.Tensor]]:
        return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), (torch.randn(256, 64),)

    plan = fxcompress.explain(whole, options=replace(OPTIONS, budget="100%"))
    assert len(plan.graphs) == 1
