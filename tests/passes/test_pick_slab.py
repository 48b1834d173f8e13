"""Slabs on a CPU: where a tensor has some, and that masks of any layout come back bit by bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fxcompress import pipeline
from fxcompress.codecs.order import memory_order
from fxcompress.codecs.valueset import Valueset
from fxcompress.options import Options
from fxcompress.passes.join_views import join_views
from fxcompress.passes.pick_slab import pick_slab, slab_of
from fxcompress.testing_graphs import Pair, capture, run


@pytest.mark.parametrize(
    "shape, strides, expected",
    [
        ((64, 56, 8, 8), (3584, 1, 448, 56), 3584),  # channels last: eight of 64 images share bytes
        ((4, 16, 8, 32), None, 256),  # 4 is no multiple of eight, 4 · 16 is
        ((1024,), None, 128),
        ((1000,), None, 125),
        ((3, 5, 7), None, 0),
        ((64, 8), None, 0),  # slabs too short for a loop
        ((24, 24), None, 24),
    ],
)
def test_slabs_are_whole_dimensions(shape: tuple[int, ...], strides: tuple[int, ...] | None, expected: int) -> None:
    val = torch.empty(shape, dtype=torch.bool)
    val = val if strides is None else val.as_strided(shape, strides)
    order = memory_order(val)
    assert order is not None and slab_of(order) == expected
    codec = pick_slab(Valueset(), order, val)
    assert isinstance(codec, Valueset) and codec.slab == expected
    assert pick_slab(Valueset(), order, val.to("meta")) == Valueset(), "other devices want blocks"


def masked(x: Tensor, weight: Tensor) -> Tensor:
    return torch.relu(x * weight).square().mul(3.0).relu().sum()


def rewritten(pair: Pair, **options: Any) -> tuple[Pair, set[int]]:
    """The pair, and the slabs of its masks."""
    result = pipeline.run(pair.fw, pair.bw, Options(min_bytes=0, **options), num_fwd_outputs=1)
    slabs = {int(dict(d.params)["slab"]) for d in result.plan.decisions if d.codec == "valueset"}
    return Pair(result.fw, result.bw, 1, pair.inputs, pair.tangents), slabs


@pytest.mark.parametrize(
    "shape, channels_last, slab",
    [
        ((16, 3, 5, 7), False, 105),
        ((16, 3, 5, 7), True, 105),
        ((4, 6, 8, 9), True, 54),
        ((64, 24), False, 24),
        ((24, 24, 3), False, 72),
        ((2048,), False, 256),
    ],
)
def test_masks_in_slabs_are_those_in_blocks(shape: tuple[int, ...], channels_last: bool, slab: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(shape).requires_grad_()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (interpreted, none), (compiled, slabs) = (
        rewritten(capture(masked, [x, weight]), inner=inner) for inner in ("aot_eager", "inductor")
    )
    assert none == {0} and slabs == {slab}
    for one, other in zip(run(interpreted).gradients, run(compiled).gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("inner, packed", [("inductor", True), ("aot_eager", False)])
def test_masks_are_packed_under_any_budget_that_is_compiled(inner: str, packed: bool) -> None:
    """Kept, they take a compiled loop longer; an interpreter takes longer to pack them."""
    torch.manual_seed(0)
    pair = capture(masked, [torch.randn(64, 24), torch.randn(64, 24).requires_grad_()])
    options = Options(min_bytes=0, inner=inner, budget="1GiB")
    decisions = pipeline.run(pair.fw, pair.bw, options, num_fwd_outputs=1).plan.decisions
    masks = [d.codec == "valueset" for d in decisions if d.tensor.dtype == "bool"]
    assert masks and all(done == packed for done in masks)


def test_a_view_of_a_view_is_one() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.view(torch.ops.aten.view(x, [12]), [3, 4]) + 1

    gm = torch.fx.symbolic_trace(Twice())
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.view:
            node.target = torch.ops.aten.view.default
    x = torch.randn(2, 6)
    assert join_views(gm) == 1
    gm.recompile()
    assert len(gm.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default)) == 1
    assert torch.equal(gm(x), x.reshape(3, 4) + 1)
