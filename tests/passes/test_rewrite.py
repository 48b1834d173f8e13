"""Rewritten pairs of random programs against the pairs they came from, and the order of their nodes."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.values import find_values
from fxcompress.testing_graphs import Pair, Ran, capture, distance, node_values, run, same, storages
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=30, derandomize=True)
LOSSY: list[dict[str, Any]] = [
    *({"bits": b, "operand_bits": max(b, 2), "rounding": r} for b in (1, 2, 4, 8) for r in ("nearest", "stochastic")),
    {"bits": 8, "group": 16},
    {"codec": "float8"},
    {"codec": "bounded"},
    {"codec": "block2d"},
    {"codec": "dual", "bits": 4, "operand_bits": 4},
]


def rewritten(program: Program, **options: Any) -> tuple[Pair, Pair, pipeline.Result]:
    """A captured pair, its rewritten copy and the result."""
    pair = capture(program, program.inputs(), program.partition)
    copy = pair.copy()
    return pair, copy, pipeline.run(copy.fw, copy.bw, Options(inner="aot_eager", min_bytes=1, **options))


def saved_nbytes(pair: Pair, ran: Ran) -> int:
    """Bytes of the distinct storages that only the backward keeps alive."""
    held = {**storages(pair.inputs), **storages(ran.outputs)}
    return sum(size for key, size in storages(ran.saved).items() if key not in held)


@SEARCH
@given(programs())
def test_exact_options_change_no_bit(program: Program) -> None:
    pair, copy, result = rewritten(program, lossy=False)
    before, after = run(pair), run(copy, compiled=True)
    assert same(after.outputs, before.outputs) and same(after.gradients, before.gradients)
    assert saved_nbytes(copy, after) == result.plan.saved_bytes_after <= result.plan.saved_bytes_before


@SEARCH
@given(programs(), st.sampled_from(LOSSY))
def test_lossy_options_touch_only_the_backward(program: Program, options: dict[str, Any]) -> None:
    pair, copy, result = rewritten(program, **options)
    before, after = run(pair), run(copy, compiled=True)
    assert same(after.outputs, before.outputs)
    for gradient, exact in zip(after.gradients, before.gradients, strict=True):
        assert (gradient is None) == (exact is None)
        assert gradient is None or gradient.isfinite().all()
    assert saved_nbytes(copy, after) == result.plan.saved_bytes_after
    if options.get("bits") == 8:
        assert distance(after.gradients, before.gradients) < 0.05


@SEARCH
@given(programs())
def test_static_facts_hold_of_real_values(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    real = node_values(pair.fw, pair.inputs)
    for node, fact in find_values(pair.fw).items():
        value = real[node]
        if not isinstance(value, torch.Tensor):
            continue
        if fact.nonnegative:
            assert not (value < 0).any(), node
        if fact.finite:
            wide = value.double()
            assert ((wide >= fact.lo) & (wide <= fact.hi) & ((wide - fact.lo) % fact.step == 0)).all(), node


@SEARCH
@given(programs(), st.sampled_from([1, 8]))
def test_each_decode_stands_right_before_its_first_consumer(program: Program, bits: int) -> None:
    _, copy, _ = rewritten(program, bits=bits, operand_bits=max(bits, 2))
    nodes = [node for node in copy.bw.graph.nodes if node.op != "placeholder"]
    runs: list[list[fx.Node]] = []
    for node in nodes:
        if not node.name.startswith("actcomp_"):
            runs.append([])
        elif runs:
            runs[-1].append(node)
        else:
            runs.append([node])
    after = dict(zip(nodes, [*nodes[1:], None], strict=True))
    for block in filter(None, runs):
        consumer = after[block[-1]]
        assert consumer is not None
        outside = {user for node in block for user in node.users if user not in block}
        assert consumer in outside, f"{block[-1]} is unpacked before {consumer}, which does not read it"


@SEARCH
@given(programs())
def test_each_encode_stands_right_after_its_producer(program: Program) -> None:
    _, copy, _ = rewritten(program, lossy=False)
    nodes = list(copy.fw.graph.nodes)
    for index, node in enumerate(nodes):
        if node.op == "call_function" and node.name.startswith("actcomp_") and not node.name.startswith("actcomp_is"):
            before = nodes[index - 1]
            assert before.name.startswith("actcomp_") or before in node.all_input_nodes or not node.all_input_nodes


def test_equal_tensors_stored_by_a_codec_with_operators_of_several_results() -> None:
    """The second copy of a template gets fake values of its own, also where an operator returns a tuple."""
    inputs = [torch.randn(64, 64, requires_grad=True) for _ in range(3)]
    pair = capture(lambda x, w, v: torch.tanh(F.gelu(x @ w) @ v), inputs)
    options = Options(inner="aot_eager", codec="bounded", bits=8, operand_bits=8, min_bytes=64)
    result = pipeline.run(pair.fw, pair.bw, options, num_fwd_outputs=pair.num_fwd_outputs)
    stored = [d for d in result.plan.decisions if d.codec == "bounded"]
    assert len(stored) >= 2 and len({d.tensor.shape for d in stored}) == 1
    tuples = [n.meta["val"] for n in result.fw.graph.nodes if isinstance(n.meta.get("val"), tuple)]
    storages = [item.untyped_storage()._cdata for val in tuples for item in val]
    assert len(tuples) == len(stored) and len(set(storages)) == len(storages)


def test_views_that_are_no_longer_saved_are_gone() -> None:
    """In generated code a view without a reader keeps its storage alive until the forward returns."""

    def function(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        rows, columns = q.sin().view(4, 64, 2, 32).transpose(1, 2), k.sin().view(4, 64, 2, 32).permute(0, 2, 3, 1)
        return torch.matmul(rows, columns).square().sum()

    def unread(pair: Pair) -> list[str]:
        return [node.name for node in pair.fw.graph.nodes if node.op == "call_function" and not node.users]

    pair = capture(function, [torch.randn(4, 64, 64, requires_grad=True) for _ in range(2)])
    only_saved = [out for out in outputs(pair.fw) if isinstance(out, fx.Node) and len(out.users) == 1]
    assert any(out.name.startswith("transpose") for out in only_saved), "views are saved that the forward does not read"
    pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64), num_fwd_outputs=pair.num_fwd_outputs)
    assert not unread(pair)
