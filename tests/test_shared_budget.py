"""One budget for several graphs: the step's predicted peak keeps it, and so does what replays the plan."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
from fxcompress import budget_scope, ledger, plan_io, trace
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


def _warnings_of(model: nn.Module, sizes: list[int], budget: object) -> list[str]:
    budget_scope.forget()
    torch._dynamo.reset()
    run = torch.compile(model, backend="actcomp", options={"inner": "aot_eager", "min_bytes": 1024, "budget": budget})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in sizes:
            run(torch.randn(size, 64)).sum().backward()
    return [str(warning.message) for warning in caught if "which each keeps by itself" in str(warning.message)]


def test_a_budget_in_bytes_for_several_graphs_of_a_compiled_step_warns_once() -> None:
    one = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    (text,) = _warnings_of(Broken(), [64, 32], "1MiB")
    assert "budget=1048576" in text and "{'plan': 'plan.json'}" in text
    assert _warnings_of(one, [64, 32], "1MiB") == [], "further sizes of a graph run in other steps"
    assert _warnings_of(Broken(), [64], "100%") == [], "a share means the same for each"


def test_a_graph_that_keeps_no_budget_is_told_from_the_others() -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layers(x)
            torch._dynamo.graph_break()
            return y.square()

    torch._dynamo.reset()
    ledger.clear()
    options = {"inner": "aot_eager", "min_bytes": 1024, "budget": "90%"}
    run = torch.compile(Tail(), backend="actcomp", options=options)
    with pytest.raises(Exception, match=r"begins at test_shared_budget.py:\d+; several graphs .*`fxcompress plan`"):
        run(torch.randn(256, 64))
    assert len(ledger.reports()) == 1
    ledger.clear()
