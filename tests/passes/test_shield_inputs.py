"""Views in front of convolution weights: the same bits, and what Inductor's lowering then saves."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

from fxcompress import compat
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.ops import op_name
from fxcompress.passes.shield_inputs import shield_inputs
from fxcompress.testing_graphs import Pair, capture, run, same


def network(x: torch.Tensor, first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    y = F.relu(F.conv2d(x, first, bias, padding=1))
    return F.conv2d(y + F.conv2d(x, first, bias, padding=2, dilation=2), second) * second.sum()


def captured(dynamic: bool = False, function=network) -> Pair:
    torch.manual_seed(0)
    shapes = ((2, 8, 10, 10), (16, 8, 3, 3), (16,), (8, 16, 3, 3))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return capture(function, inputs, dynamic=dynamic)


def weights_read(gm: fx.GraphModule) -> list[fx.Node]:
    """What stands as the weight of each convolution, forward and backward."""
    calls = [node for node in gm.graph.nodes if op_name(node) in ("convolution", "convolution_backward")]
    return [node.args[1 if op_name(node) == "convolution" else 2] for node in calls]


def test_no_bit_changes_and_every_convolution_reads_a_view_of_its_own() -> None:
    pair = captured()
    before = run(pair)
    expected = ["primals_1", "primals_1", "primals_2", "primals_2", "primals_4"]
    assert sorted(shield_inputs(pair.fw, pair.bw)) == sorted(expected * 2)
    after = run(pair, compiled=True)
    assert same(after.outputs, before.outputs) and same(after.gradients, before.gradients)
    for gm in (pair.fw, pair.bw):
        gm.graph.lint()
        views = weights_read(gm)
        assert len(set(views)) == 3 and {op_name(view) for view in views} == {"as_strided"}
        assert all(next(iter(view.users)) is view.next and len(view.users) == 1 for view in views)
        for view in views:
            source = view.args[0].meta["val"]
            assert (view.meta["val"].shape, view.meta["val"].stride()) == (source.shape, source.stride())


def test_a_second_time_there_is_nothing_to_do() -> None:
    pair = captured()
    shield_inputs(pair.fw, pair.bw)
    texts = [str(gm.graph) for gm in (pair.fw, pair.bw)]
    assert shield_inputs(pair.fw, pair.bw) == ()
    assert [str(gm.graph) for gm in (pair.fw, pair.bw)] == texts


def test_what_is_saved_and_what_else_reads_a_weight_stay() -> None:
    pair = captured()
    before = [str(node) for node in placeholders(pair.bw)]
    shield_inputs(pair.fw, pair.bw)
    assert [str(node) for node in placeholders(pair.bw)] == before
    (total,) = [node for node in pair.fw.graph.nodes if op_name(node) == "sum"]
    assert total.args[0].op == "placeholder"


def product(x: torch.Tensor, first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (x.flatten(1) @ x.flatten(1).t()).sin() * first.sum() * second.sum() * bias.sum()


def computed(x: torch.Tensor, first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    y = F.conv2d(x, first * first.mean(), bias)
    return F.conv2d(y, second) + second.sin().sum()


@pytest.mark.parametrize(("function", "readers"), [(product, []), (computed, ["mul", "mean", "convolution"])])
def test_what_leads_to_a_convolution_reads_views(function, readers) -> None:
    """What the forward computed is laid out as Inductor likes: a view of stated strides would read it wrongly."""
    pair = captured(function=function)
    before = run(pair)
    shield_inputs(pair.fw, pair.bw)
    views = pair.fw.graph.find_nodes(op="call_function", target=torch.ops.aten.as_strided.default)
    assert all(view.args[0].op == "placeholder" for view in views)
    weights = [view for view in views if view.args[0].name != "primals_1"]
    assert sorted(op_name(next(iter(view.users))) for view in weights) == sorted(readers)
    after = run(pair)
    assert same(after.outputs, before.outputs) and same(after.gradients, before.gradients)


def test_weights_of_symbolic_size_are_left_alone() -> None:
    pair = captured(dynamic=True)
    weights = [node for node in placeholders(pair.fw) if isinstance(node.meta.get("val"), torch.Tensor)]
    static = {node.name for node in weights if all(isinstance(size, int) for size in node.meta["val"].shape)}
    assert set(shield_inputs(pair.fw, pair.bw)) <= static


def copies_returned(gm: fx.GraphModule, monkeypatch) -> int:
    """How many inputs Inductor's lowering returns as something else than themselves."""
    monkeypatch.setattr(GraphLowering, "decide_layout_opt", staticmethod(lambda gm, is_inference: True))
    names = ("primals_1", "primals_2", "primals_4")
    (end,) = gm.graph.find_nodes(op="output")
    wanted = [out.name if isinstance(out, fx.Node) and out.op == "placeholder" else "" for out in end.args[0]]
    values = [node.meta["val"] for node in placeholders(gm)]
    with compat.fake_mode_of(values) as mode, torch.no_grad():
        real = [mode.from_tensor(torch.empty(val.shape)) for val in values]
        lowering = GraphLowering(gm, example_inputs=real, is_inference=False)
        with V.set_graph_handler(lowering), V.set_fake_mode(mode):
            lowering.run(*real)
    got = [out.get_name() if hasattr(out, "get_name") else "" for out in lowering.graph_outputs]
    return sum(name in names and name != found for name, found in zip(wanted, got, strict=True))


def scaled(x: torch.Tensor, first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """A weight is saved itself, and the convolution reads a function of it, as under autocast."""
    return F.conv2d(F.conv2d(x, first * 2, bias), second) * first.sin().sum()


@pytest.mark.parametrize("function", [network, scaled])
def test_inductor_saves_the_parameter_and_no_copy_of_it(function, monkeypatch) -> None:
    plain, shielded = captured(function=function), captured(function=function)
    shield_inputs(shielded.fw, shielded.bw)
    assert copies_returned(plain.fw, monkeypatch) > 0, "Inductor no longer copies: the pass has lost its reason"
    assert copies_returned(shielded.fw, monkeypatch) == 0
