"""What only the backward reads moves to its operands: the same bits, an order that can be run, and less memory."""

from typing import Any

import pytest
import torch
from functorch.compile import aot_function, min_cut_rematerialization_partition, nop
from hypothesis import given, settings
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat, pipeline
from fxcompress.options import Options
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.liveness import Machine, find_cut_peak, find_peak
from fxcompress.passes.ops import op_name
from fxcompress.passes.save_early import save_early
from fxcompress.testing_graphs import capture, run, same
from fxcompress.testing_programs import Program, programs


def cubes(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Products whose gradients need `3 y ** 2`, which autograd computes in the backward."""
    for _ in range(8):
        x = (x @ w) ** 3
    return x.sum()


def cut_at_products() -> tuple[Any, ...]:
    """The joint graph of `cubes`, what is saved (the inputs and the products with 3), forward and backward."""
    found: list[Any] = []

    def choose(joint: fx.Graph, info: Any, torch_choice: Any) -> list[fx.Node]:
        outside = compat.recompute_rules(joint, info).backward
        saved = [node for node in joint.nodes if op_name(node) == "mul" and node not in outside]
        found.extend((joint, saved + list(joint.find_nodes(op="placeholder"))[:2]))
        return found[1]

    def partition_fn(joint: fx.GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        with compat.choosing_saved_values(choose):
            pair = min_cut_rematerialization_partition(joint, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
        found.extend(map(copy_graph, pair))
        return pair

    inputs = [torch.randn(32, 32, requires_grad=True) for _ in range(2)]
    aot_function(cubes, nop, nop, partition_fn)(*inputs)
    return tuple(found)


def late_graph() -> fx.GraphModule:
    """`exp(mul(neg(x)))`, then what only the backward reads: `add(cos(sub(neg, 1)), sin(y))`."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = x.neg()
        out = (first * first).exp()
        alone = y.sin()
        return out, (first - 1).cos() + alone

    return make_fx(function, tracing_mode="fake")(torch.ones(64), torch.ones(64))


def names(gm: fx.GraphModule) -> list[str]:
    return [op_name(node) for node in gm.graph.nodes if node.op == "call_function"]


def node_of(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in gm.graph.nodes if op_name(node) == name)


def test_it_moves_behind_the_last_other_reader_of_what_it_lets_go() -> None:
    gm = late_graph()
    x, y = torch.randn(64), torch.randn(64)
    expected = gm(x, y)
    assert names(gm) == ["neg", "mul", "exp", "sin", "sub", "cos", "add"]
    save_early(gm, 1)
    gm.graph.lint()
    gm.recompile()
    assert names(gm) == ["neg", "mul", "sin", "sub", "cos", "add", "exp"]
    assert all(torch.equal(a, b) for a, b in zip(gm(x, y), expected, strict=True))
    assert save_early(gm, 1) == ()


def test_it_moves_right_behind_operands_that_are_kept_anyway() -> None:
    gm = late_graph()
    (end,) = gm.graph.find_nodes(op="output")
    end.args = ((*end.args[0], node_of(gm, "neg")),)
    save_early(gm, 1)
    assert names(gm) == ["neg", "sin", "sub", "cos", "add", "mul", "exp"]


def test_what_stands_behind_a_write_stays() -> None:
    gm = late_graph()
    with gm.graph.inserting_before(node_of(gm, "sin")):
        x = next(iter(gm.graph.nodes))
        gm.graph.call_function(torch.ops.aten.copy_.default, (x, node_of(gm, "neg")))
    assert save_early(gm, 1) == ()


def test_random_numbers_are_drawn_in_their_order() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = (x * torch.rand_like(x)).exp()
        return out, torch.rand_like(x).neg()

    gm = make_fx(function, tracing_mode="fake")(torch.ones(64))
    drawn = [node for node in gm.graph.nodes if op_name(node) == "rand_like"]
    save_early(gm, 1)
    assert [node for node in gm.graph.nodes if op_name(node) == "rand_like"] == drawn
    assert names(gm)[-2:] == ["rand_like", "neg"]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(programs())
def test_no_bit_changes(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    before = run(pair)
    save_early(pair.fw, pair.num_fwd_outputs)
    pair.fw.graph.lint()
    pair.fw.recompile()
    after = run(pair, compiled=True)
    assert same(after.outputs, before.outputs) and same(after.gradients, before.gradients)


def test_an_estimate_knows_the_order() -> None:
    joint, saved, fw, bw = cut_at_products()
    assert save_early(fw, 1)
    for machine in (Machine(fused=False), Machine(fused=True)):
        assert find_cut_peak(joint, saved, 1, machine).timeline == find_peak(fw, bw, 1, machine).timeline


@pytest.mark.parametrize("inner", ["inductor", "aot_eager"])
def test_originals_are_let_go_layer_by_layer(inner: str) -> None:
    peaks = []
    for left_out in (["save_early"], []):
        _, _, fw, bw = cut_at_products()
        result = pipeline.run(fw, bw, Options(inner=inner, operand_bits=4, min_bytes=1, disable_passes=left_out))
        peaks.append(result.plan.peak_after.forward_peak_bytes)
    assert peaks[1] < 0.8 * peaks[0]
