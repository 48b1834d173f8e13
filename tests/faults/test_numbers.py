"""faults.md, section Numbers: values and sizes that break quantizers."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from step_pairs import EXACT, LOSSY, Step, compare, compare_both, mlp, train
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fxcompress
from fxcompress import codecs
from fxcompress.codecs.noise import philox
from fxcompress.codecs.order import memory_order, to_rows


class Wide(nn.Module):
    """Saves a GELU's argument, a dropout mask and a product's operand; rows of 128 elements are one group each."""

    def __init__(self, width: int = 128, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = mlp(width, nn.GELU(), nn.Dropout(0.2), nn.Linear(width, width), nn.Tanh()).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def wide(scale: float = 1.0, offset: float = 0.0, rows: int = 16, width: int = 128, dtype: torch.dtype = torch.float32):
    def case():
        x = (torch.randn(rows, width, dtype=torch.float64) * scale + offset).to(dtype).requires_grad_()
        return Wide(width, dtype), (x,)

    return case


def with_entry(value: float):
    def case():
        module, (x,) = wide()()
        x.data[3, 5] = value
        return module, (x,)

    return case


NARROW = {**LOSSY, "bits": 4, "operand_bits": 2}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [EXACT, LOSSY, NARROW, {**LOSSY, "codec": "float8"}])
def test_a_non_finite_activation_stays_so_and_stays_alone(value: float, options: dict[str, object]):
    plain, ours = train(with_entry(value), "aot_eager"), train(with_entry(value), "actcomp", options)
    for name, gradient in plain.gradients.items():
        other = ours.gradients[name]
        assert gradient is not None and other is not None
        assert torch.equal(gradient.isfinite(), other.isfinite()), name
    clean = ours.gradients["input0"]
    assert clean is not None and clean[torch.arange(16) != 3].isfinite().all()
    assert ours.encoded


@pytest.mark.parametrize("kind", ["relu", "zero_preserving_conv"])
def test_a_non_finite_relu_output_is_not_swallowed_by_its_mask(kind: str):
    def case():
        if kind == "relu":
            return mlp(128), (with_entry(math.nan)()[1][0],)
        x = torch.randn(2, 4, 16, 16)
        x[1, 2, 3, 4] = math.nan
        return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), (x,)

    plain, ours = train(case, "aot_eager"), train(case, "actcomp", LOSSY)
    for name, gradient in plain.gradients.items():
        other = ours.gradients[name]
        assert gradient is None or (other is not None and bool((gradient.isfinite() | ~other.isfinite()).all())), name


def test_grad_scaler_skips_the_step_and_recovers():
    torch.manual_seed(0)
    model = Wide()
    compiled = torch.compile(model, backend="actcomp", options=LOSSY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    batches = [torch.randn(16, 128), torch.full((16, 128), math.inf), torch.randn(16, 128)]
    moved, scales = [], []
    for batch in batches:
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(compiled(batch).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)))
        scales.append(scaler.get_scale())
    assert moved == [True, False, True]
    assert scales == [256.0, 128.0, 128.0]
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-40])
def test_constant_activations(value: float):
    def case():
        module, _ = wide()()
        return module, (torch.full((16, 128), value, requires_grad=True),)

    compare_both(case)


def test_dead_relu_is_exact():
    def case():
        module = mlp(64)
        nn.init.constant_(module[0].bias, -100.0)
        return module, (torch.randn(16, 64, requires_grad=True),)

    compare(case, {**LOSSY, "operand_bits": 2}, encodes=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_dtypes(dtype: torch.dtype):
    compare_both(wide(dtype=dtype))


@pytest.mark.parametrize("scale", [1e-35, 1e-30, 1e20])
def test_tiny_and_huge_magnitudes(scale: float):
    """Below 1e-35 a step is less than the smallest normal number: an absolute error of 2**-126 remains."""

    def case():
        return nn.Sequential(nn.Linear(128, 128, bias=False), nn.LeakyReLU(), nn.Linear(128, 128, bias=False)), (
            torch.randn(16, 128) * scale,
        )

    compare_both(case)


def test_fp16_near_its_maximum_overflows_nowhere():
    def case():
        x = (torch.rand(16, 128) * 2 - 1) * 65000
        return nn.Sequential(nn.Identity(), nn.LeakyReLU(), nn.Dropout(0.1)).half(), (x.half().requires_grad_(),)

    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 1.0
            return torch.tanh(y * 1e-4) + y.clamp(-60000, 60000) * 1e-4

    compare_both(case, encodes=True)
    compare_both(lambda: (Square(), (case()[1][0],)), encodes=None)


def test_large_offset_with_small_variance():
    ours = compare(wide(scale=1e-3, offset=100.0), LOSSY, within=0.05, encodes=True)
    assert all(g is None or g.isfinite().all() for g in ours.gradients.values())


def test_one_outlier_in_a_group():
    def case():
        module, (x,) = wide()()
        x.data[2, 7] = 1e4
        return module, (x,)

    ours, plain = compare_both(case, within=0.2), train(case, "aot_eager")
    others = torch.arange(16) != 2
    ours_x, plain_x = ours.gradients["input0"], plain.gradients["input0"]
    assert ours_x is not None and plain_x is not None
    assert float((ours_x - plain_x)[others].norm() / plain_x[others].norm()) < 0.02


@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus])
def test_saturating_activations(act: type[nn.Module]):
    compare_both(lambda: (mlp(64, act()), (torch.randn(16, 64) * 20,)))


class Scores(nn.Module):
    """Attention with dropout on its probabilities, or a mixture weighted by them; `scale` spreads the scores."""

    def __init__(self, softmax: Callable[[torch.Tensor], torch.Tensor], scale: float, *, mixes: bool) -> None:
        super().__init__()
        self.softmax, self.scale, self.mixes = softmax, scale, mixes

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        chosen = self.softmax(q @ k.mT * self.scale)
        return chosen * (k @ v.mT) if self.mixes else nn.functional.dropout(chosen, 0.1) @ v


def taken_apart(scores: torch.Tensor) -> torch.Tensor:
    """As Inductor decomposes it."""
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("softmax", [taken_apart, functools.partial(torch.softmax, dim=-1)], ids=["apart", "whole"])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_scores_that_training_spreads_spoil_no_gradient(
    scale: float, softmax: Callable[..., torch.Tensor], mixes: bool
):
    """An error of a score is one of its probability by a factor."""

    def case():
        heads = tuple(torch.randn(4, 64, 32, requires_grad=True) for _ in range(3))
        return Scores(softmax, scale, mixes=mixes), heads

    compare(case, {"inner": "aot_eager", "min_bytes": 64}, within=0.15, encodes=True)


@pytest.mark.parametrize("power", [-20, 20])
def test_scaling_by_powers_of_two_scales_the_error_too(power: int):
    def case(scale: float):
        def make():
            return nn.Sequential(nn.Linear(64, 64, bias=False), nn.LeakyReLU(), nn.Linear(64, 64, bias=False)), (
                torch.randn(32, 64) * scale,
            )

        return make

    def error(scale: float) -> float:
        plain, ours = train(case(scale), "aot_eager"), train(case(scale), "actcomp", LOSSY)
        return _error(plain, ours)

    assert error(2.0**power) == pytest.approx(error(1.0), rel=0.3)


def _error(plain: Step, ours: Step) -> float:
    a = torch.cat([g.flatten() for g in plain.gradients.values() if g is not None]).double()
    b = torch.cat([g.flatten() for g in ours.gradients.values() if g is not None]).double()
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize(("rows", "width"), [(7, 13), (1, 100), (3, 129), (5, 127), (63, 65)])
def test_sizes_that_are_no_multiple_of_the_group(rows: int, width: int):
    compare_both(wide(rows=rows, width=width))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 3), (1, 8)])
def test_fewer_elements_than_a_group(rows: int, width: int):
    compare(wide(rows=rows, width=width), {**EXACT, "min_bytes": 0})
    compare(wide(rows=rows, width=width), {**LOSSY, "min_bytes": 0}, within=0.05)


def test_zero_dimensional_tensors():
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.a * x).sigmoid().exp()

    compare(lambda: (Scalar(), (torch.tensor(1.5, requires_grad=True),)), {**EXACT, "min_bytes": 0})
    compare(lambda: (Scalar(), (torch.tensor(1.5, requires_grad=True),)), {**LOSSY, "min_bytes": 0}, within=0.05)


@pytest.mark.parametrize("options", [{**EXACT, "min_bytes": 0}, {**LOSSY, "min_bytes": 0}])
def test_an_empty_batch(options: dict[str, object]):
    compare(wide(rows=0), options, within=1e-6)


BEYOND = 2**31 + 128


@pytest.mark.parametrize("name", codecs.names())
def test_more_than_two_to_the_31_elements_are_counted_in_64_bits(name: str):
    """Traced on a fake tensor: shapes at the boundary are right, and no index is computed in 32 bits."""
    codec = codecs.make(name, **({"lo": 0, "step": 1, "count": 2} if name == "valueset" else {}))
    dtype = torch.bool if name == "valueset" else torch.bfloat16
    with FakeTensorMode():
        x = torch.empty(BEYOND // 64, 64, dtype=dtype)
        order = memory_order(x)
        assert order is not None and order.cols == BEYOND
        traced = make_fx(lambda t: codec.encode(to_rows(t, order), 1), tracing_mode="real")(x)
        parts = codec.encode(to_rows(x, order), 1)
        assert codec.decode(parts, BEYOND, dtype).shape[-1] == BEYOND
    assert [tuple(p.shape) for p in parts] == [field.shape for field in codec.fields(BEYOND, dtype)]
    ranges = [node for node in traced.graph.nodes if "arange" in str(node.target)]
    assert all(node.meta["val"].numel() <= 1024 or node.meta["val"].dtype is torch.int64 for node in ranges)


def test_noise_uses_both_halves_of_a_group_index():
    zero, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    word = torch.full((1,), 7, dtype=torch.int64)
    low = philox((3, word), (zero, zero, zero))
    high = philox((3, word), (zero, one, zero))
    assert all(not torch.equal(a & 0xFFFFFFFF, b & 0xFFFFFFFF) for a, b in zip(low, high, strict=True))


def test_a_model_that_saves_more_than_two_to_the_31_elements_is_planned():
    def factory():
        return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), (torch.empty(BEYOND // 64, 64),)

    (graph,) = fxcompress.explain(factory, options=fxcompress.Options(inner="aot_eager")).graphs
    assert graph.saved_bytes_before >= 4 * BEYOND
    assert graph.saved_bytes_after < graph.saved_bytes_before / 3
