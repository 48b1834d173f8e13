"""Which maps get channels last, against brute force over the graph and against PyTorch's own memory format."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress import compat
from fxcompress.codecs.order import from_rows, memory_order, to_rows
from fxcompress.passes.find_channels_last import channels_last_order, find_channels_last
from fxcompress.testing_graphs import Pair, capture, node_values


def network(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.relu(F.conv2d(x, first, padding=1)), second, stride=2).sin()


def captured() -> Pair:
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    weights = (torch.randn(5, 3, 3, 3, requires_grad=True), torch.randn(4, 5, 2, 2, requires_grad=True))
    return capture(network, (x, *weights))


@pytest.fixture(params=[True, False])
def decision(request, monkeypatch) -> bool:
    """What Inductor is made to decide."""
    monkeypatch.setattr(compat, "inductor_uses_channels_last", lambda gm: request.param)
    return bool(request.param)


def test_inputs_and_results_of_convolutions_are_found(decision: bool) -> None:
    pair = captured()
    values = node_values(pair.fw, pair.inputs)
    convolutions = [node for node in pair.fw.graph.nodes if "convolution" in str(node.target)]
    expected = {str(tuple(values[n].shape)) for conv in convolutions for n in (conv, conv.args[0])}
    assert len(convolutions) == 2
    assert find_channels_last(pair.fw) == (expected if decision else set()) == find_channels_last(pair.fw)


@pytest.mark.parametrize("dims", [1, 3])
def test_other_convolutions_have_no_such_layout(dims: int, monkeypatch) -> None:
    monkeypatch.setattr(compat, "inductor_uses_channels_last", lambda gm: True)
    x = torch.randn(2, 3, *[6] * dims, requires_grad=True)
    weight = torch.randn(4, 3, *[2] * dims, requires_grad=True)
    function = {1: F.conv1d, 3: F.conv3d}[dims]
    assert find_channels_last(capture(lambda x, w: function(x, w), (x, weight)).fw) == set()


def test_inductor_is_not_asked_about_graphs_without_convolutions(monkeypatch) -> None:
    def fail(gm: object) -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(compat, "inductor_uses_channels_last", fail)
    assert find_channels_last(capture(torch.tanh, (torch.randn(4, 4, requires_grad=True),)).fw) == set()


def test_inductors_own_decision_can_be_read() -> None:
    assert find_channels_last(captured().fw) in (set(), find_all(captured()))


def find_all(pair: Pair) -> set[str]:
    maps = [n.meta["val"] for n in pair.fw.graph.nodes if n.op != "output"]
    return {str(tuple(val.shape)) for val in maps if val.dim() == 4 and val.shape[0] == 2}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_the_order_is_that_of_pytorchs_memory_format(shape: list[int]) -> None:
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    laid = x.to(memory_format=torch.channels_last)
    order = channels_last_order(x)
    flat = torch.as_strided(laid, (laid.numel(),), (1,))
    assert torch.equal(to_rows(x, order).reshape(-1), flat)
    assert torch.equal(from_rows(to_rows(x, order), order), x)
    own = memory_order(laid)
    assert own is not None and torch.equal(to_rows(laid, own), to_rows(laid, order))
