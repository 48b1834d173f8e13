"""Masks that the codes of normalized values answer for: they are PyTorch's own, whatever the codes do to the values."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress import ledger, pipeline
from fxcompress.options import Options
from fxcompress.plan import KEEP, Plan
from fxcompress.testing_graphs import Pair, Ran, capture, distance, run, same

FAST: dict[str, Any] = {"min_bytes": 64, "inner": "inductor", "disable_passes": ("outline", "fuse", "pick_lowering")}
ROWS, CHANNELS = 192, 48


def normalize(h: Tensor, dims: list[int]) -> Tensor:
    centered = h - h.mean(dims, keepdim=True)
    return centered * (centered.square().mean(dims, keepdim=True) + 1e-5).rsqrt()


def dense(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(normalize(x @ first, [0]) * weight + bias) * 3


def images(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    h = normalize(F.conv2d(x, first, padding=1), [0, 2, 3])
    return F.leaky_relu(h * weight[:, None, None] + bias[:, None, None], 0.1) * 3


def bare(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(normalize(x @ first, [0])) * 2


def shifted(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(bias + normalize(x @ first, [0])) * 3


FUNCTIONS = {"dense": dense, "images": images, "bare": bare, "shifted": shifted}


def inputs_of(name: str, weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    count = len(weight)
    if name == "images":
        x, first = torch.randn(8, 3, 9, 11).to(memory_format=torch.channels_last), torch.randn(count, 3, 3, 3) / 5
        x[3] = 0
    else:
        x, first = torch.randn(ROWS, 16), torch.randn(16, count)
        x[5:9] = 0
        # Of a channel that is constant, half precision makes NaN.
        first[:, 1] *= float(dtype is torch.float16)
    learned = [first, weight.clone(), bias.clone()]
    return [x.to(dtype), *(each.to(dtype).requires_grad_() for each in learned)]


def awkward(count: int = CHANNELS) -> tuple[Tensor, Tensor]:
    """Weights and biases of either sign, zero, and so far apart that channels pass everything or nothing."""
    torch.manual_seed(1)
    weight, bias = torch.randn(count), torch.randn(count)
    for at, (one, two) in enumerate(
        [(0, 0), (0, 1), (0, -1), (1e-30, 1), (-1e-6, -1), (1, 0), (-1, 0), (1, 30), (-1, -30)]
    ):
        weight[at], bias[at] = one, two
    return weight, bias


def stepped(pair: Pair, options: Options) -> tuple[Ran, pipeline.Result]:
    copy = pair.copy()
    result = pipeline.run(copy.fw, copy.bw, options)
    return run(copy), result


def is_folded(result: pipeline.Result) -> bool:
    signed = [d for d in result.plan.decisions if dict(d.params).get("sign_preserving")]
    masks = [d for d in result.plan.decisions if d.tensor.dtype == "bool"]
    assert not (signed and masks)
    return bool(signed)


def passed(name: str, inputs: list[Tensor]) -> Tensor:
    """What of the gradient of each element PyTorch lets through."""
    x, first, weight, bias = (each.detach() for each in inputs)
    seen: list[Tensor] = []

    def spy(value: Tensor, slope: float = 0.0) -> Tensor:
        seen.append(value)
        return value

    saved = torch.relu, F.leaky_relu
    torch.relu, F.leaky_relu = spy, spy
    try:
        FUNCTIONS[name](x, first, weight, bias)
    finally:
        torch.relu, F.leaky_relu = saved
    return seen[0] > 0


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["dense", "images", "shifted"])
def test_no_element_is_let_through_that_was_not(name: str, bits: int) -> None:
    """The gradient of the bias is the sum of what passes: bit for bit the same, whatever the codes do."""
    inputs = inputs_of(name, *awkward())
    pair = capture(FUNCTIONS[name], inputs)
    ours, result = stepped(pair, Options(bits=bits, operand_bits=max(bits, 2), **FAST))
    assert is_folded(result)
    expected = run(pair)
    assert same(ours.outputs, expected.outputs)
    bias = 3
    assert same(ours.gradients[bias : bias + 1], expected.gradients[bias : bias + 1])
    assert passed(name, inputs).any() and not passed(name, inputs).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_gradient(name: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(name, *awkward(), dtype)
    pair = capture(FUNCTIONS[name], inputs)
    ours, result = stepped(pair, Options(bits=8, **FAST))
    assert is_folded(result)
    exact = run(capture(FUNCTIONS[name], inputs_of(name, *awkward(), torch.float64)))
    plain = run(pair)
    assert distance(ours.gradients, exact.gradients) < distance(plain.gradients, exact.gradients) + 0.02


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(*[st.sampled_from([0.0, -0.0, 1e-38, 1e-20]) | st.floats(-8, 8, width=32)] * 2),
        min_size=8,
        max_size=8,
    ),
    st.sampled_from([2, 4, 8]),
)
def test_any_weights(channels: list[tuple[float, float]], bits: int) -> None:
    weight, bias = torch.tensor(channels).unbind(-1)
    pair = capture(dense, inputs_of("dense", weight, bias))
    ours, result = stepped(pair, Options(bits=bits, operand_bits=bits, **FAST))
    assert is_folded(result)
    assert same(ours.gradients[3:4], run(pair).gradients[3:4])


def test_fewer_bytes_and_no_mask() -> None:
    pair = capture(images, inputs_of("images", *awkward()))
    with_masks = {**FAST, "disable_passes": ("fold_masks", *FAST["disable_passes"])}
    (folded, one), (apart, two) = (stepped(pair, Options(bits=8, **options)) for options in (FAST, with_masks))
    assert is_folded(one) and not is_folded(two)
    elements = 8 * CHANNELS * 9 * 11
    assert apart.saved_nbytes - folded.saved_nbytes > 0.9 * elements / 8
    assert two.plan.saved_bytes_after - one.plan.saved_bytes_after > 0.9 * elements / 8


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("options", [{"limit": 0}, {"budget": "200%"}, {"lossy": False}])
def test_what_is_kept_is_the_value_itself(name: str, options: dict[str, Any]) -> None:
    pair = capture(FUNCTIONS[name], inputs_of(name, *awkward()))
    ours, result = stepped(pair, Options(**FAST, **options))
    assert all(d.codec in (KEEP, "valueset", "shared") for d in result.plan.decisions)
    expected = run(pair)
    assert same(ours.outputs, expected.outputs) and same(ours.gradients, expected.gradients)


def two(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of two, a budget may keep one."""
    one = torch.relu(normalize(x @ first, [0]) * weight + bias)
    return one * 3 + torch.relu(normalize(x.sin() @ first, [0]) * weight.exp() + bias) * 2


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_one_is_kept_and_others_are_not(limit: int) -> None:
    inputs = inputs_of("dense", *awkward())
    pair = capture(two, inputs)
    expected = run(pair)
    ours, result = stepped(pair, Options(bits=8, operand_bits=8, **FAST, limit=limit))
    codecs = [d.codec for d in result.plan.decisions if d.tensor.name.startswith("actcomp_distance_")]
    assert len(codecs) == 2
    assert same(ours.outputs, expected.outputs)
    assert distance(ours.gradients, expected.gradients) < 0.05


def test_a_plan_is_replayed() -> None:
    pair = capture(images, inputs_of("images", *awkward()))
    first, result = stepped(pair, Options(bits=4, **FAST))
    copy = pair.copy()
    again = pipeline.run(copy.fw, copy.bw, Options(bits=4, **FAST), plan=Plan((result.plan,), (), "", ""))
    assert again.plan.decisions == result.plan.decisions and same(run(copy).gradients, first.gradients)


def above_a_quarter(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.threshold(normalize(x @ first, [0]) * weight + bias, 0.25, 0.0)


def up_to_six(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu6(normalize(x @ first, [0]) * weight + bias)


def per_element(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(normalize(x @ first, [0]) + (x @ first).sin())


@pytest.mark.parametrize("function", [above_a_quarter, up_to_six, per_element])
def test_other_questions_are_answered_by_masks(function: Any) -> None:
    pair = capture(function, inputs_of("dense", *awkward()))
    ours, result = stepped(pair, Options(bits=8, **FAST))
    assert not is_folded(result)
    assert distance(ours.gradients, run(pair).gradients) < 0.05


@pytest.mark.parametrize("options", [{"inner": "aot_eager"}, {"codec": "bounded"}, {"disable_passes": ("fold_masks",)}])
def test_only_where_it_is_fused_and_the_codec_keeps_signs(options: dict[str, Any]) -> None:
    pair = capture(dense, inputs_of("dense", *awkward()))
    _, result = stepped(pair, Options(**{**FAST, **options}))
    assert not is_folded(result)


def test_values_that_are_not_finite_reach_the_gradient() -> None:
    inputs = inputs_of("dense", *awkward())
    inputs[0][7, 3] = float("inf")
    ours, result = stepped(capture(dense, inputs), Options(bits=4, **FAST))
    assert is_folded(result)
    assert any(not gradient.isfinite().all() for gradient in ours.gradients if gradient is not None)


def test_batch_norms_that_a_compiler_takes_apart() -> None:
    """As compiled: everything else here is spelled out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)).train()
    x = torch.randn(8, 3, 12, 12)

    def gradients(backend: str, **options: Any) -> list[Tensor]:
        torch.compiler.reset()
        model.zero_grad(set_to_none=True)
        torch.compile(model, backend=backend, options=options or None)(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    ours = gradients("actcomp", min_bytes=64)
    names = [d.tensor.name for graph in ledger.reports() for d in graph.decisions]
    assert any(name.startswith("actcomp_distance_") for name in names)
    assert distance(ours, gradients("aot_eager")) < 0.03
