"""What predicts the gradient's error judges groups that end at rows as they are stored; none divides 36 elements."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from fxcompress import ledger, plan_io, sensitivity
from fxcompress.options import Options
from fxcompress.verify import verify

SMALL: dict[str, Any] = {"inner": "aot_eager", "min_bytes": 64}
WIDTH = 36


class WithToken(nn.Module):
    """Pre-norm layers on sequences with a token of zeros in front, whose gradient is divided by next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH, 1e-6) for _ in range(2)])
        self.linears = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return a scalar."""
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + 1e-3 * linear(norm(x))
        out: Tensor = (x * weights).sum()
        return out


def case() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model with a batch; always the same."""
    torch.manual_seed(0)
    return WithToken(), (torch.randn(8, 8, WIDTH), torch.randn(8, 9, WIDTH))


def error_of(compiled: Callable[..., Tensor], model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    parameters = list(model.parameters())
    ours, exact = (torch.autograd.grad(call(*inputs), parameters) for call in (compiled, model))
    squared = sum(float((a - b).square().sum()) for a, b in zip(ours, exact, strict=True))
    return math.sqrt(squared / sum(float(b.square().sum()) for b in exact))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    ledger.clear()


@pytest.mark.parametrize("dynamic", [False, True])
def test_max_error_stores_rows_within_the_error_that_it_predicts(dynamic: bool) -> None:
    model, inputs = case()
    compiled = torch.compile(model, backend="actcomp", options={**SMALL, "max_error": 0.05}, dynamic=dynamic)
    error_of(compiled, model, inputs)
    error = error_of(compiled, model, inputs)
    (plan,) = ledger.reports()
    assert plan.saved_bytes_after < 0.6 * plan.saved_bytes_before
    assert WIDTH in {decision.row for decision in plan.decisions}
    assert plan.accuracies[0].predicted / 2 < error < 2 * plan.accuracies[0].predicted


def test_verify_measures_single_tensors_in_their_rows() -> None:
    found = verify(case, (), Options(**SMALL, max_error=0.05), per_tensor=True)
    assert found.ok and len(found.stored) > 2
    for error in found.stored:
        assert error.predicted / 2 < error.measured < 2 * error.predicted, error


def test_widths_by_sensitivity_have_the_error_that_they_state(tmp_path: Path) -> None:
    (model, inputs), path = case(), tmp_path / "plan.json"
    options = Options(**SMALL, rounding="stochastic")
    found = sensitivity.calibrate(model, lambda compiled: compiled(*inputs), path, average_bits=4, options=options)
    compiled = torch.compile(model, backend="actcomp", options={"plan": str(path), "inner": "aot_eager"})
    error = error_of(compiled, model, inputs)
    assert found.expected_error / 2 < error < 2 * found.expected_error


def test_a_plan_states_its_rows_and_replays_them(tmp_path: Path) -> None:
    model, inputs = case()
    path = str(tmp_path / "plan.json")
    planned = error_of(torch.compile(model, backend="actcomp", options={**SMALL, "save_plan": path}), model, inputs)
    plan = plan_io.load(path)
    torch._dynamo.reset()
    replayed = torch.compile(model, backend="actcomp", options={"plan": path, "inner": "aot_eager"})
    assert error_of(replayed, model, inputs) == planned
    (graph,) = plan.graphs
    odd = tuple(dataclasses.replace(d, row=37) if d.row else d for d in graph.decisions)
    plan_io.save(path, dataclasses.replace(plan, graphs=(dataclasses.replace(graph, decisions=odd),)))
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed, match="rows of 37 elements"):
        torch.compile(model, backend="actcomp", options={"plan": path, "inner": "aot_eager"})(*inputs)
