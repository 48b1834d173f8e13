"""Graphs of thousands of nodes in a row: no pass follows them by recursion, of which Python allows a thousand, and none
goes every way that parts and meets again, of which a few dozen make more than can be counted."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fxcompress import pipeline
from fxcompress.codecs import lowering, planes
from fxcompress.codecs.order import memory_order
from fxcompress.options import Options
from fxcompress.passes.find_cheap import find_cheap
from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.find_scales import find_scales
from fxcompress.passes.find_signs import find_signs
from fxcompress.passes.find_statistics import is_statistic
from fxcompress.passes.row_groups import row_width
from fxcompress.passes.save_predicates import mask_only
from fxcompress.testing_graphs import Pair, capture

LENGTH = 3000
SIDE = 64


def chain(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Two products with pointwise operators between them, of which the last asks the sign of all that is before."""
    inner = x @ first
    for _ in range(LENGTH // 2):
        inner = (inner + 0.5) * 0.5
    return torch.relu(inner) @ second


@pytest.fixture(scope="module")
def deep() -> Pair:
    torch.manual_seed(0)
    return capture(chain, [torch.randn(SIDE, SIDE, requires_grad=True) for _ in range(3)])


@pytest.mark.parametrize(
    "options",
    [{}, {"budget": "100%", "inner": "aot_eager"}, {"inner": "aot_eager", "lossy": False}],
    ids=["default", "budget", "exact"],
)
def test_a_long_chain_is_planned(options: dict[str, Any], deep: Pair) -> None:
    pair = deep.copy()
    result = pipeline.run(pair.fw, pair.bw, Options(min_bytes=64, **options))
    assert len(result.fw.graph.nodes) > LENGTH


def test_a_long_chain_is_planned_as_for_a_gpu(deep: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "wanted", lambda _: True)
    monkeypatch.setattr(planes, "wanted", lambda _: True)
    pair = deep.copy()
    chosen = Options(min_bytes=64, bits=4, operand_bits=4, rounding="stochastic", disable_passes=("outline",))
    assert len(pipeline.run(pair.fw, pair.bw, chosen).fw.graph.nodes) > LENGTH


def test_what_a_long_chain_makes_of_a_statistic_is_one() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(8, 64)
    node = graph.call_function(torch.ops.aten.sum.dim_IntList, (x, [1]))
    node.meta["val"] = torch.empty(8)
    for _ in range(LENGTH):
        node = graph.call_function(torch.ops.aten.mul.Tensor, (node, 0.5))
        node.meta["val"] = torch.empty(8)
    assert is_statistic(node)
    assert not is_statistic(x)


def test_signs_are_told_of_a_long_chain() -> None:
    """A sum of terms is asked two things of both sides: asked anew of each, twenty in a row would take minutes."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    root = graph.call_function(torch.ops.aten.abs.default, (x,))
    unknown, known = x, root
    for _ in range(LENGTH):
        unknown, known = (graph.call_function(torch.ops.aten.add.Tensor, (node, 0.5)) for node in (unknown, known))
    signs = find_signs(graph)
    assert not signs.is_nonnegative(unknown)
    assert signs.is_nonnegative(root) and not signs.is_positive(root) and signs.is_positive(known)


@pytest.mark.parametrize("falling", [True, False])
def test_an_exponent_is_followed_through_a_long_chain(falling: bool) -> None:
    graph = torch.fx.Graph()
    x, gradient = graph.placeholder("x"), graph.placeholder("tangents_1")
    node = graph.call_function(torch.ops.aten.abs.default, (x,)) if falling else x
    for _ in range(LENGTH):
        node = graph.call_function(torch.ops.aten.view.default, (node, [8]))
    exponent = graph.call_function(torch.ops.aten.neg.default, (node,))
    scale = graph.call_function(torch.ops.aten.exp.default, (exponent,))
    product = graph.call_function(torch.ops.aten.mul.Tensor, (gradient, scale))
    graph.output((product,))
    gm = torch.fx.GraphModule(torch.nn.Module(), graph)
    assert find_scales(gm, {gradient, product}) == (set() if falling else {scale})


PARTINGS = 60
aten = torch.ops.aten


def rolled(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.fx.Node:
    """Rows moved in a circle, as `torch.roll` is taken apart, again and again."""
    val = node.meta["val"]
    for _ in range(PARTINGS):
        parts = [graph.call_function(aten.slice.Tensor, (node, 0, *ends)) for ends in ((1, 8), (0, 1))]
        node = graph.call_function(aten.cat.default, (parts,))
        for each in (*parts, node):
            each.meta["val"] = val
    return node


def test_ways_of_moves_that_meet_are_gone_once() -> None:
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    x.meta["val"], weight.meta["val"] = torch.empty(8, 2), torch.empty(2, 16)
    product = graph.call_function(aten.mm.default, (rolled(graph, x), weight))
    product.meta["val"] = torch.empty(8, 16)
    order = memory_order(x.meta["val"])
    assert order is not None and row_width(x, order) == 0
    assert set(find_cheap([product])[product]) == {x, weight}


@pytest.mark.parametrize("read", [False, True])
def test_ways_to_predicates_that_meet_are_gone_once(read: bool) -> None:
    forward, graph = torch.fx.Graph(), torch.fx.Graph()
    saved, gradient = graph.placeholder("x"), graph.placeholder("tangents_1")
    pair = SavedPair(0, forward.placeholder("x"), saved)
    saved.meta["val"] = gradient.meta["val"] = torch.empty(8)
    node = saved
    for _ in range(PARTINGS):
        parts = [graph.call_function(aten.mul.Tensor, (node, number)) for number in (0.25, 0.5)]
        node = graph.call_function(aten.add.Tensor, tuple(parts))
    asked = graph.call_function(aten.gt.Scalar, (node, 0))
    graph.output((graph.call_function(aten.where.self, (asked, gradient, node if read else gradient)),))
    gm = torch.fx.GraphModule(torch.nn.Module(), graph)
    assert mask_only(gm, [pair]) == (set() if read else {saved})
