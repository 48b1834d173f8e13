"""Predicted live bytes: closed forms by hand, and equality with an interpreter that frees what it no longer needs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import fx

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.passes.liveness import Machine, find_peak
from fxcompress.passes.ops import GRADIENT
from fxcompress.testing_graphs import Function, Pair, Partition, capture, measure
from fxcompress.testing_programs import Program, programs

N = 32
MATRIX = N * N * 4


def matrix(seed: int = 0) -> torch.Tensor:
    return torch.randn(N, N, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def predicted(pair: Pair) -> tuple[int, int]:
    peak = find_peak(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(False))
    return peak.forward_peak_bytes, peak.backward_peak_bytes


def measured(pair: Pair) -> tuple[int, int]:
    forward, backward = measure(pair)
    return max(forward.values(), default=0), max(backward.values(), default=0)


def test_closed_form_of_one_activation() -> None:
    """sigmoid(x): the result forward; the same and the tangent backward, whose gradient is the caller's."""
    pair = capture(torch.sigmoid, (matrix(),))
    assert predicted(pair) == (MATRIX, 2 * MATRIX) == measured(pair)


def test_closed_form_of_a_product() -> None:
    """x @ w saves only inputs: the result forward, the tangent backward."""
    pair = capture(torch.mm, (matrix(), matrix(1)))
    assert predicted(pair) == (MATRIX, MATRIX) == measured(pair)


def test_closed_form_of_a_chain() -> None:
    """tanh(tanh(x @ w)): both results are saved; the backward peaks with both, a tangent and one gradient."""
    pair = capture(lambda x, w: torch.tanh(torch.tanh(x @ w)), (matrix(), matrix(1)), "default")
    forward, backward = predicted(pair)
    assert (forward, backward) == measured(pair)
    assert forward == 2 * MATRIX and backward == 4 * MATRIX


def views(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    a, b = torch.split(F.gelu(x @ w), [10, 22], 1)
    return (a.t() @ b).sin() + b[:10] * 2


def pooled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = F.max_pool2d((x @ w).view(1, 4, 16, 16), 2)
    return F.layer_norm(y.relu(), (8,)).flatten()


def expanded(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    row = (x @ w).sum(0)
    return (row.expand(N, N) * x).tanh() + row


def several(x: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
    value, index = torch.sort(x @ w, 1)
    return [value * 2, (value.exp() / (1 + index)).cumsum(0)]


@pytest.mark.parametrize("function", [views, pooled, expanded, several])
@pytest.mark.parametrize("partition", ["default", "min_cut", "bases"])
def test_predicted_peaks_are_those_of_an_interpreter(function: Function, partition: Partition) -> None:
    pair = capture(function, (matrix(), matrix(1)), partition)
    assert predicted(pair) == measured(pair)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(programs())
def test_predicted_peaks_of_random_programs(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    assert predicted(pair) == measured(pair)


def stack(depth: int) -> Pair:
    def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = F.gelu(x @ weight)
        return x

    return capture(function, (matrix(), *(matrix(i) for i in range(depth))))


@pytest.mark.parametrize("lossy", [True, False])
def test_rewritten_pairs_are_predicted_too(lossy: bool) -> None:
    pair = stack(4)
    pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64, lossy=lossy, bits=8))
    assert predicted(pair) == measured(pair)


def test_packed_outputs_of_equal_layers_count_separately() -> None:
    """Equal layers are traced once; their payloads are storages of their own."""
    after = {}
    for depth in (2, 4, 8):
        pair = stack(depth)
        plan = pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64)).plan
        after[depth] = plan.saved_bytes_after
        assert plan.peak_after.forward_peak_bytes >= plan.saved_bytes_after
        assert plan.peak_after.backward_peak_bytes >= plan.saved_bytes_after
        assert plan.peak_after.peak_bytes >= max(plan.peak_after.timeline)
    assert after[8] - after[4] == 2 * (after[4] - after[2]) > 0


def test_inlined_operators_are_never_stored() -> None:
    pair = capture(lambda x: ((x * 2).sin() + 1).sum(), (matrix(),))
    unfused = find_peak(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(False))
    fused = find_peak(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(True))
    assert fused.forward_peak_bytes == 4 < unfused.forward_peak_bytes


@pytest.mark.parametrize("marked, returned, counted", [(True, True, False), (False, True, True), (True, False, True)])
def test_a_gradient_made_in_the_forward_is_the_callers(marked, returned, counted) -> None:
    """What the backward only scales and returns lies in the memory of the gradient that it returns."""
    val = {name: {"val": torch.zeros(N, N)} for name in ("x", "g", "back", "tangents_1", "scaled", "more")}
    fw, bw = fx.Graph(), fx.Graph()
    x = fw.placeholder("x")
    g = fw.call_function(torch.ops.aten.mm.default, (x, x))
    back, tangent = bw.placeholder(g.name), bw.placeholder("tangents_1")
    scaled = bw.call_function(torch.ops.aten.mul.Tensor, (back, tangent))
    last = scaled if returned else bw.call_function(torch.ops.aten.mm.default, (scaled, scaled))
    for node, name in zip((x, g, back, tangent, scaled, last), val, strict=True):
        node.meta = dict(val[name])
    back.meta["val"] = g.meta["val"]
    g.meta |= {"actcomp": GRADIENT} if marked else {}
    fw.output((x, g))
    bw.output((last,))
    pair = (fx.GraphModule(torch.nn.Module(), graph) for graph in (fw, bw))
    assert find_peak(*pair, 1, Machine(True)).forward_peak_bytes == MATRIX * counted
