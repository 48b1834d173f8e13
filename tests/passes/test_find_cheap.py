"""Cheap products: their operations against a count by hand, and what is done with them in a whole step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxcompress
from bench.models import zoo
from bench.models.binary import BinaryConv
from fxcompress.options import Options
from fxcompress.passes.find_cheap import find_cheap
from fxcompress.plan import GraphPlan
from fxcompress.trace import explain


def cheap_names(function: Callable[..., Any], *inputs: torch.Tensor) -> dict[str, list[str]]:
    gm = make_fx(function, tracing_mode="fake")(*inputs)
    found = find_cheap(gm.graph.nodes)
    return {node.name: sorted(origin.name for origin in origins) for node, origins in found.items()}


@pytest.mark.parametrize(("channels", "expected"), [(1, True), (2, False)])
def test_convolution(channels: int, expected: bool) -> None:
    """18 operations per channel and fp32 element of four bytes; the limit is 32."""
    x, weight = torch.empty(2, channels, 8, 8), torch.empty(5, channels, 3, 3)
    found = cheap_names(lambda x, w: F.conv2d(x, w), x, weight)
    assert found == ({"convolution": ["w_1", "x_1"]} if expected else {})


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_sum_fewer_channels(groups: int) -> None:
    x, weight = torch.empty(2, 4, 8, 8), torch.empty(4, 4 // groups, 3, 3)
    assert bool(cheap_names(lambda x, w: F.conv2d(x, w, groups=groups), x, weight)) is (groups == 4)


@pytest.mark.parametrize(("terms", "dtype", "expected"), [
    (16, torch.float32, True), (17, torch.float32, False), (8, torch.bfloat16, True), (9, torch.bfloat16, False),
])  # fmt: skip
def test_matrix_product(terms: int, dtype: torch.dtype, expected: bool) -> None:
    x, weight = torch.empty(6, terms), torch.empty(5, terms)
    bias = torch.empty(5)
    found = cheap_names(lambda x, w, b: F.linear(x.to(dtype), w.to(dtype), b.to(dtype)), x, weight, bias)
    assert found == ({"addmm": ["b_1", "w_1", "x_1"]} if expected else {})


def test_transposed_convolutions_and_computed_operands_are_left_alone() -> None:
    x, weight = torch.empty(2, 1, 8, 8), torch.empty(1, 5, 3, 3)
    assert not cheap_names(lambda x, w: F.conv_transpose2d(x, w), x, weight)
    assert not cheap_names(lambda x, w: F.conv2d(x.relu(), w), x, torch.empty(5, 1, 3, 3))


def saved_by(factory: Callable[[], object], **options: Any) -> GraphPlan:
    (graph,) = explain(factory, options=Options(**options)).graphs
    return graph


@pytest.mark.parametrize(("factory", "lossy", "rebuilt"), [(zoo.bnn, False, True), (zoo.cnn, True, False)])
def test_what_raises_no_peak_is_rebuilt(factory: Callable[[], object], lossy: bool, rebuilt: bool) -> None:
    """The binary net reads its first convolution alone; the CNN's would stand beside its largest gradients."""
    graph = saved_by(factory, lossy=lossy)
    names = {decision.tensor.name for decision in graph.decisions}
    kept = {"convolution", "actcomp_normalized_convolution", "actcomp_distance_convolution"}
    assert kept.isdisjoint(names) is rebuilt
    kept = saved_by(factory, lossy=lossy, disable_passes=["find_cheap"])
    assert graph.peak_after.peak_bytes <= kept.peak_after.peak_bytes
    assert (graph.saved_bytes_after < kept.saved_bytes_after) is rebuilt


def test_gradients_are_exact_and_the_plan_replays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), BinaryConv(16, 16))
    images = torch.randn(8, 1, 16, 16)
    path = str(tmp_path / "plan.json")
    plain = torch.compile(module, backend="aot_eager")
    expected = torch.autograd.grad(plain(images).square().mean(), tuple(module.parameters()))
    fxcompress.ledger.clear()
    for options in ({"save_plan": path, "lossy": False}, {"plan": path}):
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="actcomp", options={"inner": "aot_eager", **options})
        found = torch.autograd.grad(compiled(images).square().mean(), tuple(module.parameters()))
        assert all(map(torch.equal, found, expected))
    made, replayed = fxcompress.reports()
    assert made == replayed
    assert "convolution" not in {decision.tensor.name for decision in made.decisions}
