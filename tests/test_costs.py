"""Modelled seconds: closed forms, and no guard on symbolic sizes."""

import torch
import torch.nn.functional as F
from torch import fx

from fxcompress import costs
from fxcompress.passes.ops import op_name
from fxcompress.testing_graphs import capture

CPU = costs.rates_of(torch.device("cpu"))


def node_of(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in gm.graph.nodes if op_name(node) == name)


def test_a_product_costs_its_flops_and_its_traffic() -> None:
    pair = capture(torch.mm, (torch.randn(8, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True)))
    traffic = 4 * (8 * 16 + 16 * 4 + 8 * 4)
    expected = 2 * 8 * 16 * 4 / CPU.flops_per_s + traffic / CPU.bytes_per_s
    assert costs.recompute_s(node_of(pair.fw, "mm"), CPU) == expected


def test_a_convolution_and_an_attention_cost_flops() -> None:
    pair = capture(F.conv2d, (torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)))
    flops = 2 * 2 * 4 * 6 * 6 * 3 * 3 * 3
    assert costs.recompute_s(node_of(pair.fw, "convolution"), CPU) > flops / CPU.flops_per_s
    q = torch.randn(1, 2, 16, 8, requires_grad=True)
    pair = capture(lambda q: F.scaled_dot_product_attention(q, q, q), (q,))
    (attention,) = [node for node in pair.fw.graph.nodes if "attention" in op_name(node)]
    assert costs.recompute_s(attention, CPU) > 0


def test_pointwise_is_cheaper_than_a_copy_and_views_are_free() -> None:
    pair = capture(lambda x: x.sin().t().cos(), (torch.randn(64, 64, requires_grad=True),))
    assert 0 < costs.recompute_s(node_of(pair.fw, "sin"), CPU) < 2 * 64 * 64 * 4 / CPU.bytes_per_s
    assert costs.recompute_s(node_of(pair.fw, "t"), CPU) == 0


def test_interpreted_kernels_bound_by_arithmetic_cost_more_than_their_traffic() -> None:
    """A pool over a map takes tens of times as long as an addition to it (measured: 80)."""
    rates = costs.rates_of(torch.device("cpu"), fused=False)
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    pair = capture(lambda x: F.max_pool2d(x + 1, 3, 2, 1), (x,))
    pool, addition = (costs.recompute_s(node_of(pair.fw, n), rates) for n in ("max_pool2d_with_indices", "add"))
    assert pool > 20 * addition


def test_symbolic_sizes_count_by_their_hint() -> None:
    inputs = (torch.randn(8, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True))
    static, symbolic = (capture(torch.mm, inputs, dynamic=dynamic) for dynamic in (False, True))
    assert costs.step_s(symbolic.fw) == costs.step_s(static.fw) > 0


def test_an_unknown_gpu_counts_as_the_slowest_known() -> None:
    assert costs.rates_of(torch.device("cuda")).bytes_per_s <= 1.6e12


def test_codes_of_fewer_bytes_cost_less() -> None:
    assert costs.code_s(1 << 20, 1 << 16, False, CPU) < costs.code_s(1 << 20, 1 << 18, False, CPU)
    assert costs.code_s(1 << 20, 1 << 16, False, CPU) < costs.code_s(1 << 20, 1 << 16, True, CPU)
