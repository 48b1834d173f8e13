"""Predicted gradient errors against exact Jacobians, closed forms, PyTorch's kernels and plain repetition."""

import itertools
import math
from dataclasses import replace
from operator import getitem as operator_getitem

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import jacrev

from fxcompress import curvature
from fxcompress.adjoint import Stored, squared_errors
from fxcompress.attention_math import attention_backward, differentiable
from fxcompress.codecs.affine import Affine
from fxcompress.curvature import bent
from fxcompress.facts import SavedTensor
from fxcompress.passes.find_saved import placeholders
from fxcompress.perturbation import Repeater
from fxcompress.rounding_error import expected_square

CODECS = (Affine(bits=8, rounding="nearest"), Affine(bits=4), Affine(bits=2), Affine(bits=1))


def backward(x: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """What a backward may do: a leaf gradient, and one whose error goes through a derivative and on."""
    slope = torch.tanh(y) * g
    return x.t() @ slope, (slope * x.cos()).sum(0)


def traced(*values: Tensor) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(backward)(*values)


def test_squared_errors_are_the_diagonal_of_the_exact_jacobian() -> None:
    torch.manual_seed(0)
    values = [torch.randn(64, 32) for _ in range(3)]
    bw = traced(*values)
    stored = {name: Stored((node,), 0, CODECS) for name, node in zip("xy", placeholders(bw), strict=False)}
    found, squared, hidden = squared_errors(bw, stored, values, draws=16)
    wide = [value.double() for value in values]
    exact = backward(*wide)
    assert not hidden and squared == pytest.approx(sum(float(part.square().sum()) for part in exact), rel=1e-5)
    for position, name in enumerate("xy"):
        slopes = sum(jacobian.flatten(0, -3).square().sum(0) for jacobian in jacrev(backward, argnums=position)(*wide))
        for square, codec in zip(found[name], CODECS, strict=True):
            expected = float((slopes * expected_square(values[position], codec)).sum())
            assert square == pytest.approx(expected, rel=0.1), (name, codec.bits)


def test_perturbing_and_differentiating_agree() -> None:
    torch.manual_seed(0)
    values = [torch.randn(128, 64) for _ in range(3)]
    bw = traced(*values)
    stored = {name: Stored((node,), 0, CODECS) for name, node in zip("xy", placeholders(bw), strict=False)}
    derived, _, _ = squared_errors(bw, stored, values, draws=8)
    repeater = Repeater(bw, values)
    for name in "xy":
        for codec, theirs in zip(CODECS[:2], derived[name], strict=False):
            assert repeater.squared_error([(stored[name], codec, 1)]) == pytest.approx(theirs, rel=0.25), name


def test_a_tensor_behind_an_operator_without_a_derivative_is_reported_as_hidden() -> None:
    @torch.library.custom_op("fxcompress_test::plain_double", mutates_args=())
    def plain_double(x: Tensor) -> Tensor:
        return 2 * x

    graph = fx.Graph()
    x, y, g = (graph.placeholder(name) for name in "xyg")
    mixed = graph.call_function(torch.ops.aten.mul.Tensor, (x, g))
    opaque = graph.call_function(torch.ops.fxcompress_test.plain_double.default, (mixed,))
    leaf = graph.call_function(torch.ops.aten.mul.Tensor, (y, opaque))
    graph.output((leaf,))
    bw = fx.GraphModule(nn.Module(), graph)
    values = [torch.randn(64, 32) for _ in range(3)]
    stored = {"x": Stored((x,), 0, CODECS), "y": Stored((y,), 0, CODECS)}
    found, _, hidden = squared_errors(bw, stored, values, draws=4)
    assert hidden == {"x"} and found.keys() == {"y"}
    slopes = (2 * values[1] * values[2]).square()
    for bits, codec in ((0, CODECS[1]), (8, CODECS[0])):
        measured = Repeater(bw, values).squared_error([(replace(stored["x"], bits=bits), codec, 1)])
        expected = float((slopes * expected_square(values[0], codec, coded_bits=bits)).sum())
        assert measured == pytest.approx(expected, rel=0.25)


_KINDS = ("plain", "zeros", "signs", "heads", "ragged")


@pytest.mark.parametrize(
    ("kind", "bits"),
    [*itertools.product(_KINDS, (2, 4, 8)), *((kind, 1) for kind in _KINDS if kind not in ("zeros", "signs"))],
)
def test_expected_squares_are_those_of_codes(kind: str, bits: int) -> None:
    torch.manual_seed(0)
    rounding = "nearest" if bits == 8 else "stochastic"
    x = torch.randn(32, 4, 96) if kind != "ragged" else torch.randn(1, 1000)
    codec = Affine(bits=bits, rounding=rounding)  # type: ignore[arg-type]
    if kind == "zeros":
        x, codec = x.relu(), Affine(bits=bits, rounding=rounding, zero_preserving=True)  # type: ignore[arg-type]
    if kind == "signs":
        x, codec = x + 0.5, Affine(bits=bits, rounding=rounding, sign_preserving=True)  # type: ignore[arg-type]
    if kind == "heads":
        codec = Affine(bits=bits, rounding=rounding, heads=4, dim=96)  # type: ignore[arg-type]
    rows = x.reshape(1, -1)
    decoded = [codec.decode(codec.encode(rows, salt), rows.shape[1], x.dtype) for salt in range(24)]
    measured = torch.stack([(d - rows).square() for d in decoded]).mean(0)
    expected = expected_square(x, codec)
    assert expected.shape == x.shape
    assert float(expected.sum()) == pytest.approx(float(measured.sum()), rel=0.05)
    if kind == "zeros":
        assert not expected[x == 0].any()
    # From values that were decoded from 8 bits, as a calibrating step has them.
    fine = replace(codec, bits=8, group=0, rounding="nearest")
    coded = fine.decode(fine.encode(rows, 0), rows.shape[1], x.dtype).reshape(x.shape)
    again = expected_square(coded, codec, coded_bits=8)
    assert float(again.sum()) == pytest.approx(float(measured.sum()), rel=0.1)


@pytest.mark.parametrize("case", ["plain", "causal", "bias", "fewer heads"])
def test_attention_in_small_operators_is_the_kernels_backward(case: str) -> None:
    torch.manual_seed(0)
    heads = 2 if case == "fewer heads" else 4
    query, grad = torch.randn(2, 4, 24, 16), torch.randn(2, 4, 24, 16)
    key, value = torch.randn(2, heads, 24, 16), torch.randn(2, heads, 24, 16)
    bias = torch.randn(2, 4, 24, 24) if case == "bias" else None
    wide = (lambda t: t.repeat_interleave(4 // heads, 1)) if heads != 4 else (lambda t: t)
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    options = {"attn_mask": bias, "scale": 0.3}
    out, lse = forward(query, wide(key), wide(value), 0.0, case == "causal", **options)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    expected = kernel(grad, query, wide(key), wide(value), out, lse, 0.0, case == "causal", **options)
    ours = attention_backward(grad, query, key, value, out, lse, bias=bias, causal=case == "causal", scale=0.3)
    for mine, theirs in zip(ours, expected, strict=False):
        summed = theirs.unflatten(1, (mine.shape[1], -1)).sum(2)
        assert torch.allclose(mine, summed, atol=1e-4)

    graph = fx.Graph()
    node = graph.call_function(kernel.default, (), {})
    replaced = differentiable(node)
    assert replaced is not None
    again = replaced(grad, query, wide(key), wide(value), out, lse, 0.0, case == "causal", **options)
    assert all(torch.allclose(mine, theirs, atol=1e-4) for mine, theirs in zip(again, expected, strict=True))
    assert math.isfinite(float(again[0].sum()))


def test_saved_statistics_do_not_follow_the_input_of_a_normalization() -> None:
    """PyTorch's own derivative of a normalization's backward says they do."""
    torch.manual_seed(0)
    shape, weight = [64], torch.rand(64)
    grad, x = torch.randn(64, 64), torch.randn(64, 64) + 3 * torch.randn(64, 1)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, shape, weight, None, 1e-5)
    graph = fx.Graph()
    places = [graph.placeholder(name) for name in ("grad", "x", "mean", "rstd", "weight")]
    mask = [True, True, False]
    operator = torch.ops.aten.native_layer_norm_backward.default
    node = graph.call_function(operator, (*places[:2], shape, *places[2:], None, mask))
    graph.output(tuple(graph.call_function(operator_getitem, (node, i)) for i in (0, 1)))
    bw = fx.GraphModule(nn.Module(), graph)
    values = [grad, x, mean, rstd, weight]
    entry = Stored((places[1],), 0, CODECS)
    found, _, _ = squared_errors(bw, {"x": entry}, values, draws=16)
    repeater = Repeater(bw, values)
    for codec, expected in zip(CODECS[:2], found["x"], strict=False):
        measured = [repeater.squared_error([(entry, codec, salt)]) for salt in range(4)]
        assert sum(measured) / 4 == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("repeated", [48, 1])
def test_one_and_two_bits_are_corrected_for_what_bends_also_in_layers_alike(
    repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A square's error has a part of second order; a product's has none."""
    torch.manual_seed(0)
    graph = fx.Graph()
    x, y, w, g = (graph.placeholder(name) for name in "xywg")
    curves = [graph.call_function(torch.ops.aten.pow.Tensor_Scalar, (node, 2)) for node in (x, y)]
    leaves = [graph.call_function(torch.ops.aten.mul.Tensor, (node, g)) for node in (*curves, w)]
    graph.output(tuple(leaves))
    bw = fx.GraphModule(nn.Module(), graph)
    values = [torch.randn(512, 64) for _ in range(4)]
    stored = {node.name: Stored((node,), 0, CODECS) for node in (x, y, w)}
    tensor = SavedTensor(0, "x", "x", "h.0", "", "mul", (512, 64), (64, 1), "float32", 0, 0, "derivative", ())
    facts = {
        "x": tensor, "y": replace(tensor, name="y", layer="h.1"), "w": replace(tensor, name="w", need="operand")
    }  # fmt: skip
    first, _, _ = squared_errors(bw, stored, values, draws=8)
    repeater = Repeater(bw, values)
    monkeypatch.setattr(curvature, "REPEATED", repeated)
    found = bent(first, stored, facts, repeater)
    assert found["w"] == first["w"] and found["x"][:2] == first["x"][:2]
    for name, place in itertools.product("xy", (2, 3)):
        assert found[name][place] > 1.05 * first[name][place]
        measured = [repeater.squared_error([(stored[name], CODECS[place], salt)]) for salt in range(7, 11)]
        assert found[name][place] == pytest.approx(sum(measured) / len(measured), rel=0.1)
