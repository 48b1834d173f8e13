"""The controller of error bounds: its formula against measured gradient errors; new bounds without a compilation."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fxcompress import bounds, ledger
from fxcompress.codecs.bounded import Bounded, live


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    ledger.clear()
    live.clear()
    torch._dynamo.reset()
    yield
    live.clear()


@pytest.mark.parametrize(
    "shape, weight, extra",
    [
        ((8, 6, 16, 16), (10, 6, 3, 3), {"padding": 1}),
        ((8, 6, 17, 17), (4, 6, 5, 5), {"stride": 2}),
        ((16, 8, 12, 12), (8, 8, 1, 1), {}),
        ((8, 8, 16, 16), (8, 4, 3, 3), {"groups": 2, "padding": 1}),
    ],
    ids=["3x3", "5x5 stride 2", "1x1", "groups"],
)
@pytest.mark.parametrize("relu", [False, True])
def test_sigma_of_a_weight_gradient_is_the_formula(shape, weight, extra, relu: bool) -> None:
    """By brute force: encode the operand, take both gradients, compare the spread of their difference."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(shape, generator=generator), torch.randn(weight, generator=generator, requires_grad=True)
    x = x.relu() if relu else x
    gradient = torch.randn(F.conv2d(x, w, **extra).shape, generator=generator)
    norms = torch.linalg.vector_norm(gradient, dim=(0, 2, 3))
    sigma = 1.0
    eps = bounds.error_bound(sigma, norms, float((x != 0).float().mean()))
    codec = Bounded(eps=eps, bits=8)
    decoded = codec.decode(codec.encode(x.reshape(-1), 1), x.numel(), x.dtype).reshape(x.shape)
    assert float((decoded - x).abs().max()) <= eps
    exact, ours = (torch.autograd.grad((F.conv2d(part, w, **extra) * gradient).sum(), w)[0] for part in (x, decoded))
    assert 0.8 * sigma < float((ours - exact).square().mean().sqrt()) < 1.2 * sigma


class Net(nn.Module):
    """Convolutions of which nothing but their operands and the ReLUs' masks is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        )  # fmt: skip
        self.register_buffer("weights", torch.randn(8, 7, 7, generator=torch.Generator().manual_seed(5)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a scalar of which every position has a gradient of its own, as classes and tokens have."""
        out: Tensor = (self.body(x) * self.weights).sum()
        return out


OPTIONS = {"codec": "bounded", "adaptive": True, "bits": 8, "operand_bits": 8, "min_bytes": 64}


def gradients(run, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    run(x).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def spread(ours: dict[str, Tensor], exact: dict[str, Tensor], name: str) -> float:
    return float((ours[name] - exact[name]).square().mean().sqrt())


@pytest.mark.parametrize("inner", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_controller_holds_sigma_at_its_target_without_compiling_again(inner: str) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(16, 1, 16, 16)
    exact = gradients(model, model, x)
    compiled = torch.compile(model, backend="actcomp", options={**OPTIONS, "inner": inner})
    gradients(compiled, model, x)
    graphs = counters["stats"]["unique_graphs"]
    for share in (0.02, 0.08):
        before = torch.get_rng_state()
        changed = bounds.refresh(model, lambda: model(x), share=share)
        assert torch.equal(torch.get_rng_state(), before)
        assert {key.rpartition("/")[0] for key in changed} >= {"body.1", "body.3"}
        ours = gradients(compiled, model, x)
        for name in ("body.2.weight", "body.4.weight"):
            target = share * float(exact[name].abs().mean())
            assert 0.8 * target < spread(ours, exact, name) < 1.2 * target
    assert counters["stats"]["unique_graphs"] == graphs


def test_until_a_bound_is_set_codes_are_as_near_as_the_rate_allows() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(16, 1, 16, 16)
    exact = gradients(model, model, x)
    compiled = torch.compile(model, backend="actcomp", options={**OPTIONS, "inner": "aot_eager"})
    for name, gradient in gradients(compiled, model, x).items():
        assert (gradient - exact[name]).norm() < 0.01 * exact[name].norm()


def test_momentum_takes_the_place_of_the_gradient() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 1, 16, 16)
    weights = {name: torch.full_like(p, 0.5) for name, p in model.named_parameters()}
    measured = bounds.measure(model, lambda: model(x), weights)
    assert set(measured) == {"body.0", "body.2", "body.4"}
    assert all(product.scale == 0.5 for product in measured.values())
    assert [measured[path].source for path in ("body.0", "body.2", "body.4")] == ["", "body.1", "body.3"]


def test_a_step_of_measurement_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 3))
    x = torch.randn(4, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bounds.refresh(model, lambda: model(x).square().mean())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_harm_needs_no_bound() -> None:
    assert bounds.error_bound(0.1, torch.zeros(4)) == math.inf
    assert bounds.error_bound(0.1, torch.ones(4)) == pytest.approx(0.1 * math.sqrt(3))
    assert bounds.error_bound(0.1, torch.tensor([1.0, 7.0])) == pytest.approx(0.1 * math.sqrt(3) / 5)
