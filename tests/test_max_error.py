"""`max_error` through every door: the first step calibrates, plans keep the limit, what cannot be kept is refused."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress import backend, calibration, first_call, ledger, plan_io
from fxcompress.cli import main
from fxcompress.error_table import ErrorTable
from fxcompress.errors import AccuracyError, FxcompressError, OptionError, PlanError
from fxcompress.noise_limit import noise_limit
from fxcompress.options import Options
from fxcompress.trace import explain
from fxcompress.verify import verify

SMALL: dict[str, Any] = {"inner": "aot_eager", "min_bytes": 1024}


class Net(nn.Module):
    """Products, pointwise derivatives, a normalization and fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(32, 64), nn.LayerNorm(64)
        self.attention = nn.Linear(64, 192)
        self.last = nn.Linear(64, 16)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return a scalar."""
        hidden = self.norm(torch.nn.functional.gelu(self.first(x)))
        q, k, v = self.attention(hidden).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = self.last(torch.nn.functional.silu(mixed.transpose(1, 2).flatten(2)) + hidden)
        loss: Tensor = (out - target).square().mean()
        return loss


def case() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model with a batch; always the same."""
    torch.manual_seed(0)
    return Net(), (torch.randn(8, 24, 32), torch.randn(8, 24, 16))


def gradient(compiled: Any, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(compiled(*inputs), list(model.parameters()))])


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    ledger.clear()


@pytest.fixture
def table(tmp_path: Path) -> str:
    model, inputs = case()
    path = tmp_path / "errors.json"
    calibration.calibrate(model, lambda compiled: compiled(*inputs), path, options=Options(**SMALL, max_error=0.05))
    torch._dynamo.reset()
    return str(path)


@pytest.mark.parametrize("limit", [0.01, 0.05])
def test_the_first_step_calibrates_and_the_next_keeps_the_limit(limit: float) -> None:
    model, inputs = case()
    exact = gradient(model, model, inputs)
    compiled = torch.compile(model, backend="actcomp", options={**SMALL, "max_error": limit})
    first = gradient(compiled, model, inputs)
    assert not ledger.reports() and float((first - exact).norm() / exact.norm()) < 0.02
    error = float((gradient(compiled, model, inputs) - exact).norm() / exact.norm())
    (plan,) = ledger.reports()
    (accuracy,) = plan.accuracies
    assert accuracy.predicted <= limit and error <= 1.1 * limit
    assert accuracy.predicted / 1.5 < error < 1.5 * accuracy.predicted
    lossy = [decision for decision in plan.decisions if decision.codec == "affine"]
    assert math.hypot(*(d.predicted_error for d in lossy)) == pytest.approx(accuracy.predicted)
    assert len({dict(d.params)["bits"] for d in lossy}) == (1 if limit == 0.01 else 2)
    assert accuracy.bound == accuracy.cost == plan.saved_bytes_after


def test_a_smaller_limit_saves_more_bytes_and_a_table_gives_the_same_plan_every_time(table: str) -> None:
    fine, coarse, again = (
        explain(case, (), Options(**SMALL, max_error=limit, calibration=table)) for limit in (0.005, 0.1, 0.1)
    )
    assert plan_io.dumps(coarse) == plan_io.dumps(again)
    assert fine.graphs[0].saved_bytes_after > coarse.graphs[0].saved_bytes_after


def test_arguments_of_derivatives_are_tried_at_one_bit_and_operands_at_two(table: str) -> None:
    (graph,) = plan_io.load_errors(table).graphs
    widths = {tensor.name: [width.bits for width in tensor.widths] for tensor in graph.tensors}
    assert widths == {
        "addmm": [8, 4, 2, 1], "mul": [8, 4, 2], "getitem": [8, 4, 2], "add": [8, 4, 2], "addmm_1": [8],
        "transpose": [8],
    }  # fmt: skip
    for tensor in graph.tensors:
        assert [w.rel_error for w in tensor.widths] == sorted(w.rel_error for w in tensor.widths)


def test_a_plan_with_a_limit_is_replayed_with_its_errors(table: str, tmp_path: Path) -> None:
    made = explain(case, (), Options(**SMALL, max_error=0.05, calibration=table))
    path = str(tmp_path / "plan.json")
    plan_io.save(path, made)
    (again,) = explain(case, (), Options(inner="aot_eager", plan=path)).graphs
    assert again.accuracies == made.graphs[0].accuracies and again.saved_bytes_after == made.graphs[0].saved_bytes_after


def test_a_budget_and_a_limit_are_kept_together_or_refused() -> None:
    model, inputs = case()
    exact = gradient(model, model, inputs)
    options = {**SMALL, "max_error": 0.03, "budget": "90%"}
    compiled = torch.compile(model, backend="actcomp", options=options)
    for _ in range(2):
        error = float((gradient(compiled, model, inputs) - exact).norm() / exact.norm())
    (plan,) = ledger.reports()
    assert plan.peak_after.peak_bytes <= plan.fits[0].limit_bytes and error <= 1.1 * 0.03
    assert plan.accuracies[0].predicted <= 0.03 and plan.fits[0].code_s == plan.accuracies[0].cost


class Blocks(nn.Module):
    """Products, pointwise derivatives and normalizations; their best cut depends on the widths."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.LayerNorm(128), nn.Linear(128, 64)) for _ in range(2))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a scalar."""
        loss: Tensor = (self.blocks(x) - x.roll(1, 0)).square().mean()
        return loss


def blocks() -> tuple[nn.Module, tuple[Tensor]]:
    """The model with a batch; always the same."""
    torch.manual_seed(0)
    return Blocks(), (torch.randn(1024, 64),)


def test_with_a_budget_a_second_step_calibrates_the_cut_for_fewer_bits_and_the_cheaper_plan_is_taken(
    tmp_path: Path,
) -> None:
    model, inputs = blocks()
    exact = gradient(model, model, inputs)
    options = Options(**SMALL, max_error=0.3, budget="65%")
    compiled = torch.compile(model, backend="actcomp", options={**SMALL, "max_error": 0.3, "budget": "65%"})
    for calibrated in range(3):
        assert not ledger.reports(), calibrated
        error = float((gradient(compiled, model, inputs) - exact).norm() / exact.norm())
        assert error <= 0.3
    (plan,) = ledger.reports()
    assert plan.peak_after.peak_bytes <= plan.fits[0].limit_bytes

    table = calibration.calibrate(model, lambda compiled: compiled(*inputs), options=options)
    assert [(graph.bits, graph.operand_bits) for graph in table.graphs] == [(8, 8), (4, 8)]
    first, second = (
        _overhead_s(dataclasses.replace(table, graphs=(each,)), tmp_path, options, blocks) for each in table.graphs
    )
    assert _overhead_s(table, tmp_path, options, blocks) == second < 0.9 * first
    assert plan.fits[0].recompute_s + plan.fits[0].code_s == second


def _overhead_s(table: ErrorTable, folder: Path, options: Options, factory: Any) -> float:
    """Modelled seconds of recomputing and coding."""
    path = str(folder / "errors.json")
    plan_io.save(path, table)
    (plan,) = explain(factory, (), dataclasses.replace(options, calibration=path)).graphs
    return plan.fits[0].recompute_s + plan.fits[0].code_s


def test_a_limit_that_no_choice_within_the_budget_keeps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing may be computed again and codecs take no memory, only lossy codecs lower the peak."""

    def no_network(*args: object) -> None:
        raise ValueError

    monkeypatch.setattr("fxcompress.passes.cut_within.build_network", no_network)
    monkeypatch.setattr("fxcompress.passes.cut_within.MEMORY_BUDGETS", ())
    for module in ("fit_budget", "pack_values"):
        monkeypatch.setattr(f"fxcompress.passes.{module}.working_sizes", lambda codec, dtype: (0.0, 0.0))
    model, inputs = case()
    strict = torch.compile(model, backend="actcomp", options={**SMALL, "max_error": 2**-20, "budget": "85%"})
    gradient(strict, model, inputs)
    for _ in range(2):  # also where the first was caught
        with pytest.raises(AccuracyError, match="lowest predicted error of the gradient found within a peak") as caught:
            gradient(strict, model, inputs)
        assert caught.value.rel_error > 2**-20


def test_under_a_rule_tensors_take_its_width_or_are_kept(table: str) -> None:
    rule = {"op": "*", "bits": 2}
    options = Options(**SMALL, max_error=0.05, calibration=table, rules=(rule,))  # type: ignore[arg-type]
    (plan,) = explain(case, (), options).graphs
    lossy = {(d.codec, dict(d.params)["bits"]) for d in plan.decisions if d.codec == "affine"}
    assert lossy <= {("affine", 2), ("affine", 8)} and plan.accuracies[0].predicted <= 0.05
    assert any(d.reason.startswith("kept under max_error") for d in plan.decisions)


def test_verify_shows_predicted_beside_measured_for_every_tensor() -> None:
    found = verify(case, (), Options(**SMALL, max_error=0.05), per_tensor=True)
    assert found.ok and found.max_error == pytest.approx(0.055) and found.stored
    assert found.predicted_error is not None
    assert found.predicted_error / 1.5 < found.gradient_rel_error < 1.5 * found.predicted_error
    for error in found.stored:
        assert error.predicted / 2 < error.measured < 2 * error.predicted, error
    whole = math.hypot(*(error.measured for error in found.stored))
    assert whole == pytest.approx(found.gradient_rel_error, rel=0.2)


def test_the_command_line_calibrates_and_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "errors.json")
    small = ["--option", "inner=aot_eager", "--option", "min_bytes=1024"]
    assert main(["calibrate", "tests.test_max_error:case", *small, "-o", path]) == 2
    assert "'max_error' is missing" in capsys.readouterr().err
    limited = [*small, "--option", "max_error=0.05"]
    assert main(["calibrate", "tests.test_max_error:case", *limited, "-o", path]) == 0
    assert "1 graphs" in capsys.readouterr().err
    limited += ["--option", f"calibration={path}"]
    assert main(["explain", "tests.test_max_error:case", *limited]) == 0
    assert "limit 0.05" in capsys.readouterr().out
    assert main(["verify", "tests.test_max_error:case", *limited, "--per-tensor"]) == 0
    assert "predicted" in capsys.readouterr().out
    content = json.loads(Path(path).read_text())
    content["graphs"][0]["fingerprint"] = "0" * 32
    Path(path).write_text(json.dumps(content))
    assert main(["explain", "tests.test_max_error:case", *limited]) == 2
    assert "no errors for this graph" in capsys.readouterr().err
    Path(path).write_text("{}")
    with pytest.raises(PlanError, match="schema_version"):
        plan_io.load_errors(path)


def test_without_a_table_what_never_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="fxcompress calibrate"):
        backend.install(max_error=0.1)
    with pytest.raises(Exception, match="fxcompress calibrate"):
        explain(case, (), Options(**SMALL, max_error=0.1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(OptionError, match="ranks"):
        first_call.refuse_ranks()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_error": 0.1, "bits": 2}, "'max_error' and 'bits' conflict"),
        ({"max_error": 0.1, "codec": "dual"}, "'max_error' and 'codec' conflict"),
        ({"max_error": 0.1, "lossy": False}, "'max_error' and 'lossy' conflict"),
        ({"calibration": "x.json"}, "no effect without 'max_error'"),
        ({"max_error": 0.1, "rules": ({"op": "mm", "codec": "dual"},)}, "not predicted"),
        ({"max_error": 0.0}, "a number in"),
        ({"max_error": 0.1, "plan": "p.json"}, "'plan' and 'max_error' conflict"),
    ],
)
def test_options_that_a_limit_leaves_nothing_to_decide_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options)


def test_a_graph_without_a_backward_and_a_zero_gradient_are_no_obstacle() -> None:
    model, inputs = case()
    compiled = torch.compile(model, backend="actcomp", options={**SMALL, "max_error": 0.05})
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), model(*inputs))
    parameters = list(model.parameters())
    for _ in range(2):
        zero = torch.autograd.grad(compiled(*inputs) * 0.0, parameters)
    assert not any(g.any() for g in zero) and not ledger.reports()
    for _ in range(2):
        gradient(compiled, model, inputs)
    assert len(ledger.reports()) == 1


def test_the_limit_from_minibatch_noise_is_the_spread_of_whole_batches() -> None:
    """A linear model whose gradient's noise is known: of a mean over n samples it is the variance of one over n."""
    torch.manual_seed(0)
    model = nn.Linear(64, 1, bias=False)
    mean, spread, n = torch.ones(64), 3.0, 4096
    halves = [mean + spread * torch.randn(n // 2, 64) for _ in range(2)]
    first, second = (lambda compiled, x=x: compiled(x).mean() for x in halves)
    expected = math.sqrt(0.1 * 64 * spread**2 / n) / 8
    assert noise_limit(model, first, second) == pytest.approx(expected, rel=0.3)
    assert model.weight.grad is None
    with pytest.raises(FxcompressError, match="no limit follows"):
        noise_limit(model, lambda compiled: 0 * first(compiled), lambda compiled: 0 * second(compiled))
