"""Widths by measured sensitivity: allocation against brute force, and predicted against measured gradient errors."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress import plan_io, sensitivity
from fxcompress.errors import OptionError
from fxcompress.options import Options
from fxcompress.sensitivity import allocate

WIDTHS = st.sampled_from([(1, 2, 4, 8), (2, 4, 8), (8,)])
INSTANCES = st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 50), WIDTHS), min_size=1, max_size=5)


def cost(coefficients, bits) -> float:
    return sum(c / (2**b - 1) ** 2 for c, b in zip(coefficients, bits, strict=True))


@settings(deadline=None, max_examples=200)
@given(INSTANCES, st.floats(1, 8))
def test_widths_are_the_best_for_the_bits_they_take(instance, average: float) -> None:
    """Error is convex in bits over these widths, so that greedy is exact at the budgets that it ends at."""
    coefficients, elements, widths = (list(column) for column in zip(*instance, strict=True))
    least = sum(w[0] * n for n, w in zip(elements, widths, strict=True))
    if least > average * sum(elements):
        with pytest.raises(OptionError, match="smallest"):
            allocate(coefficients, elements, widths, average)
        return
    chosen = allocate(coefficients, elements, widths, average)
    used = sum(n * b for n, b in zip(elements, chosen, strict=True))
    assert used <= average * sum(elements) and all(b in w for b, w in zip(chosen, widths, strict=True))
    best = min(
        cost(coefficients, bits)
        for bits in itertools.product(*widths)
        if sum(n * b for n, b in zip(elements, bits, strict=True)) <= used
    )
    assert cost(coefficients, chosen) <= best * (1 + 1e-9)


class Net(nn.Module):
    """Two hidden layers of which the first is far more sensitive than the second: its gradient is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.BatchNorm1d(64)
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return a scalar."""
        out: Tensor = (self.layers(x) * weights).sum()
        return out


def test_a_calibrated_plan_has_the_average_and_the_error_that_it_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Net(), (torch.randn(128, 32), torch.randn(128, 64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = Options(bits=4, operand_bits=4, rounding="stochastic", min_bytes=64, inner="aot_eager")
    path = tmp_path / "plan.json"
    found = sensitivity.calibrate(model, lambda compiled: compiled(*inputs), path, average_bits=4, options=options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.tensors and all(tensor.coefficient > 0 for tensor in found.tensors)
    used = sum(tensor.bits * tensor.elements for tensor in found.tensors)
    assert used <= 4 * sum(tensor.elements for tensor in found.tensors)
    assert found.backward_passes == 2 * len(found.tensors) + 1
    (graph,) = plan_io.load(path).graphs
    stored = {d.tensor.name: dict(d.params)["bits"] for d in graph.decisions if d.codec == "affine"}
    assert stored == {tensor.name: tensor.bits for tensor in found.tensors}

    exact = torch.autograd.grad(model(*inputs), list(model.parameters()))
    model.load_state_dict(before)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="actcomp", options={"plan": str(path), "inner": "aot_eager"})
    ours = torch.autograd.grad(compiled(*inputs), list(model.parameters()))
    error = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(ours, exact, strict=True)))
    norm = math.sqrt(sum(float(b.square().sum()) for b in exact))
    assert found.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert 0.5 < error / norm / found.expected_error < 2
    assert found.alarm(0.0) and not found.alarm(1e3 * norm**2)


def test_an_average_that_need_classes_do_not_admit_is_refused(tmp_path: Path) -> None:
    model, inputs = Net(), (torch.randn(128, 32), torch.randn(128, 64))
    options = Options(min_bytes=64, inner="aot_eager")
    with pytest.raises(OptionError, match="smallest"):
        sensitivity.calibrate(
            model, lambda compiled: compiled(*inputs), tmp_path / "p.json", average_bits=0.5, options=options
        )


class Products(nn.Module):
    """Two convolutions and two matrix products, each of ReLU outputs, which are saved as operands."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 16, 32), nn.ReLU(), nn.Linear(32, 16),
        )  # fmt: skip

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return a scalar."""
        out: Tensor = (self.body(x) * weights).sum()
        return out


def test_the_closed_form_is_what_repeated_passes_measure(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Products(), (torch.randn(64, 4, 8, 8), torch.randn(64, 16))
    options = Options(bits=4, operand_bits=4, rounding="stochastic", min_bytes=64, inner="aot_eager")
    found = {
        scorer: sensitivity.calibrate(
            model, lambda compiled: compiled(*inputs), tmp_path / "p.json", options=options, scorer=scorer, draws=4
        )
        for scorer in ("solo", "analytic")
    }
    solo, closed = ({t.name: t.coefficient for t in found[scorer].tensors} for scorer in ("solo", "analytic"))
    assert solo.keys() == closed.keys() and found["analytic"].backward_passes < found["solo"].backward_passes
    derived = [name for name in solo if solo[name] != closed[name]]
    assert derived
    for name in derived:
        assert 0.75 < closed[name] / solo[name] < 1.35, (name, closed[name], solo[name])


class Attention(nn.Module):
    """One fused attention, whose result is read again by its own backward and as a product's operand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return a scalar."""
        q, k, v = self.qkv(x).view(4, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = (nn.functional.gelu(self.out(mixed.transpose(1, 2).flatten(2))) * weights).sum()
        return out


def test_what_attention_reads_has_8_bits_whatever_else_reads_it(tmp_path: Path) -> None:
    """q, k, v and the result are four fifths of the elements; the GELU's argument, a factor of the loss's gradient, has
    2 bits at the least."""
    torch.manual_seed(0)
    model, inputs = Attention(), (torch.randn(4, 16, 32), torch.randn(4, 16, 32))
    options = Options(bits=4, operand_bits=4, min_bytes=64, inner="aot_eager")
    with pytest.raises(OptionError, match=rf"admit is {8 * 4 / 5 + 2 / 5:g}"):
        sensitivity.calibrate(
            model, lambda compiled: compiled(*inputs), tmp_path / "p.json", average_bits=6, options=options
        )
