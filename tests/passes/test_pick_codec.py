"""Which codec a tensor gets by its layout, and the reason where it is not the one asked for."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from fxcompress import codecs, pipeline
from fxcompress.codecs.order import memory_order
from fxcompress.options import Options
from fxcompress.passes.pick_codec import pick_codec
from fxcompress.testing_graphs import capture

LAST = torch.channels_last


def node(x: torch.Tensor) -> fx.Node:
    graph = fx.Graph()
    source = graph.placeholder("x")
    source.meta["val"] = x
    return source


def picked(x: torch.Tensor, need: str = "derivative", **changes) -> tuple[object, str]:
    options = Options(inner="aot_eager", **{"codec": "dual", "bits": 2, "operand_bits": 2, **changes})
    codec, reason = pick_codec(need, options, node(x), memory_order(x))  # type: ignore[arg-type]
    assert codec.fields(x.numel(), x.dtype)
    return codec, reason


@pytest.mark.parametrize("name", ["dual", "block2d"])
@pytest.mark.parametrize(
    "x, sizes",
    [
        (torch.randn(2, 3, 8, 12), (8, 12, 1)),
        (torch.randn(2, 3, 8, 12).to(memory_format=LAST), (8, 12, 3)),
        (torch.randn(2, 20, 6), (20, 1, 6)),
        (torch.randn(2, 6, 20).transpose(1, 2), (20, 1, 1)),
    ],
    ids=["image", "channels_last", "tokens", "channels first"],
)
def test_maps_by_memory_order(name: str, x: torch.Tensor, sizes: tuple[int, int, int]) -> None:
    codec, reason = picked(x, codec=name)
    params = codecs.params(codec)  # type: ignore[arg-type]
    assert codec.name == name and not reason  # type: ignore[attr-defined]
    assert (params["height"], params["width"], params["inner"]) == sizes


def test_a_matrix_is_a_sequence_where_the_graph_views_it_so() -> None:
    x = torch.randn(40, 6)
    assert "neither a map" in picked(x)[1]
    source = node(x)
    view = source.graph.call_function(torch.ops.aten.view.default, (source, [2, 20, 6]))
    view.meta["val"] = x.view(2, 20, 6)
    codec, reason = pick_codec("derivative", Options(codec="dual", bits=2), source, memory_order(x))
    assert codecs.params(codec)["height"] == 20 and not reason


@pytest.mark.parametrize(
    "x, need, changes, why",
    [
        (torch.randn(64, 64), "operand", {}, "neither a map nor a sequence"),
        (torch.randn(2, 2, 2, 2, 16), "operand", {}, "neither a map nor a sequence"),
        (torch.randn(8, 16, 3, 3), "operand", {}, "smaller than 16"),
        (torch.randn(2, 4, 8, 8), "attention", {}, "not attention"),
        (torch.randn(2, 4, 8, 8), "operand+mask", {}, "zero pattern"),
        (torch.randn(2, 4, 8, 8), "operand", {"operand_bits": 8}, "at most 4 bits"),
        (torch.randn(2, 4, 8, 8), "operand+mask", {"codec": "float8", "bits": 8, "operand_bits": 8}, "zero pattern"),
    ],
)
def test_affine_with_a_reason_where_a_codec_does_not_fit(x: torch.Tensor, need: str, changes, why: str) -> None:
    codec, reason = picked(x, need, **changes)
    assert codec.name == "affine" and reason.startswith("affine: ") and why in reason  # type: ignore[attr-defined]


def test_block2d_keeps_zeros() -> None:
    codec, reason = picked(torch.randn(2, 4, 8, 8), "operand+mask", codec="block2d")
    assert codecs.params(codec)["zero_preserving"] and not reason  # type: ignore[arg-type]


def test_bounded_counts_in_root_mean_squares_or_is_set_by_name() -> None:
    x = torch.randn(64, 64)
    static, _ = picked(x, codec="bounded", error_bound=0.5, bits=1)
    adaptive, _ = picked(x, codec="bounded", adaptive=True, bits=4)
    params = [codecs.params(codec) for codec in (static, adaptive)]  # type: ignore[arg-type]
    assert [params[0][name] for name in ("eps", "relative", "key", "bits")] == [0.5, True, "", 2]
    assert [params[1][name] for name in ("relative", "key", "bits")] == [False, "/x", 4]
    assert "zero pattern" in picked(x, "operand+mask", codec="bounded")[1]


def attention(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    q, k, v = (x @ w).view(2, 20, 3, 4, 16).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 20, 64)


def test_attention_operands_have_a_scale_per_head() -> None:
    """12 heads behind one projection; as near as the error of one group per head is, and nearer than one of all."""
    inputs = [torch.randn(2, 20, 64, requires_grad=True), torch.randn(64, 192, requires_grad=True)]
    pair = capture(attention, inputs)
    options = Options(inner="aot_eager", group="head", bits=8, min_bytes=64)
    plan = pipeline.run(pair.fw, pair.bw, options, num_fwd_outputs=pair.num_fwd_outputs).plan
    found = [dict(d.params) for d in plan.decisions if d.tensor.need == "attention" and d.codec == "affine"]
    assert found and all(params["dim"] == 16 and params["heads"] in (4, 12) for params in found)
    assert all(dict(d.params).get("heads", 0) == 0 for d in plan.decisions if d.tensor.need != "attention")


def network(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.relu(F.conv2d(F.gelu(x), w, padding=1)), v, padding=1)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("codec", ["dual", "block2d"])
def test_a_rewritten_pair_computes_gradients_from_maps(codec: str, last: bool) -> None:
    """No affine where maps fit, a mask in bits where zeros are asked for, and gradients near the exact ones."""
    x = torch.randn(2, 8, 16, 16)
    x = (x.to(memory_format=LAST) if last else x).requires_grad_()
    inputs = [x, *(torch.randn(8, 8, 3, 3, requires_grad=True) for _ in range(2))]
    pair = capture(network, inputs)
    exact = torch.autograd.grad(network(*inputs).sum(), inputs)
    options = Options(inner="aot_eager", codec=codec, bits=4, operand_bits=4, min_bytes=64)
    result = pipeline.run(pair.fw, pair.bw, options, num_fwd_outputs=pair.num_fwd_outputs)
    used = {decision.codec for decision in result.plan.decisions} - {"keep", "shared"}
    assert codec in used and "affine" not in used and used <= {codec, "valueset"}
    saved = result.fw(*pair.inputs)[pair.num_fwd_outputs :]
    gradients = result.bw(*saved, torch.ones(2, 8, 16, 16))
    for got, want in zip(gradients, exact, strict=True):
        assert (got - want).norm() < 0.15 * want.norm()
