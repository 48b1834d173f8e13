"""The straight way as a whole: determinism, replay, a second run, dynamic sizes, weights, and hidden conflicts."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcompress import ledger, pipeline, plan_io
from fxcompress.errors import PlanError
from fxcompress.options import Options
from fxcompress.passes.alias import find_storages
from fxcompress.passes.collect import collect
from fxcompress.passes.demand import find_demands
from fxcompress.passes.find_masked import find_masked
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.fingerprint import fingerprint
from fxcompress.passes.liveness import Machine, find_peak
from fxcompress.passes.values import find_values
from fxcompress.plan import KEEP, GraphPlan, Plan
from fxcompress.testing_graphs import Function, Pair, capture, run, same

OPTIONS = Options(inner="aot_eager", min_bytes=64)


def network(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    a = torch.maximum(x @ w, (x @ w).sin()) @ v
    return F.relu(F.gelu(a) @ w).tanh() * torch.where(a > 0.3, a, a * a)


def inputs(rows: int = 48, cols: int = 40, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((rows, cols), (cols, cols), (cols, cols))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5 for shape in shapes]
    return tuple(value.to(dtype).requires_grad_() for value in made)


def compress(pair: Pair, options: Options = OPTIONS, plan: Plan | None = None) -> GraphPlan:
    return pipeline.run(pair.fw, pair.bw, options, plan=plan).plan


def texts(pair: Pair) -> tuple[str, str]:
    return str(pair.fw.graph), str(pair.bw.graph)


def plan_text(function: Function = network) -> str:
    """The plan file of `function`, captured anew."""
    return plan_io.dumps(ledger.make_plan([compress(capture(function, inputs()))], OPTIONS))


def test_plans_are_byte_identical_twice_and_under_another_hash_seed() -> None:
    here = Path(__file__)
    script = (
        f"import sys; sys.path.insert(0, {str(here.parent)!r}); import test_pipeline as t; print(t.plan_text(), end='')"
    )
    environment = {"PYTHONHASHSEED": "4242", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here.parents[1], check=True)
    assert plan_text() == plan_text() == other.stdout


def test_rewriting_is_deterministic() -> None:
    one, two = capture(network, inputs()), capture(network, inputs())
    compress(one), compress(two)
    assert texts(one) == texts(two)
    assert same(run(one).gradients, run(two).gradients)


def test_read_only_passes_change_nothing_and_repeat_themselves() -> None:
    pair = capture(network, inputs(), "default")
    before = texts(pair)

    def findings() -> tuple[object, ...]:
        pairs = find_saved(pair.fw, pair.bw)
        storages = find_storages(pair.fw, pairs, pair.num_fwd_outputs)
        values = find_values(pair.fw)
        demands = find_demands(pair.bw, pairs, values)
        masked = find_masked(pair.fw)
        saved = collect(storages, demands, values, masked, 64)
        peak = find_peak(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(True))
        return pairs, storages, values, demands, masked, saved, peak, fingerprint(pair.fw, pair.bw)

    assert findings() == findings()
    assert texts(pair) == before


@pytest.mark.parametrize("lossy", [True, False])
def test_a_second_run_leaves_payloads_alone(lossy: bool) -> None:
    pair = capture(network, inputs())
    first = compress(pair, replace(OPTIONS, lossy=lossy))
    before, ran = texts(pair), run(pair)
    second = compress(pair, replace(OPTIONS, lossy=lossy))
    assert {d.codec for d in second.decisions if d.tensor.name.startswith("actcomp_")} <= {KEEP}
    assert second.saved_bytes_after == first.saved_bytes_after and texts(pair) == before
    assert same(run(pair).gradients, ran.gradients)


REPLAYED: list[dict[str, Any]] = [
    {},
    {"limit": 1},
    {"limit": 0},
    {"lossy": False},
    {"bits": 2, "operand_bits": 2},
    {"min_bytes": 9000},
    {"codec": "float8"},
]


@pytest.mark.parametrize("changes", REPLAYED, ids=str)
@pytest.mark.parametrize("partition", ["default", "bases"])
def test_replay_gives_the_same_graphs(changes: dict[str, Any], partition: Any) -> None:
    options = replace(OPTIONS, **changes)
    planned, replayed = capture(network, inputs(), partition), capture(network, inputs(), partition)
    plan = ledger.make_plan([compress(planned, options)], options)
    again = compress(replayed, Options(inner="aot_eager"), plan_io.loads(plan_io.dumps(plan)))
    assert texts(replayed) == texts(planned)
    assert [(d.codec, d.params, d.nbytes) for d in again.decisions] == [
        (d.codec, d.params, d.nbytes) for d in plan.graphs[0].decisions
    ]


OTHERS: dict[str, tuple[Function, tuple[torch.Tensor, ...]]] = {
    "shape": (network, inputs(rows=49)),
    "dtype": (network, inputs(dtype=torch.bfloat16)),
    "operator": (lambda x, w, v: network(x, w, v).sin(), inputs()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_graph_is_refused(name: str) -> None:
    plan = ledger.make_plan([compress(capture(network, inputs()))], OPTIONS)
    with pytest.raises(PlanError, match="no plan for this graph"):
        compress(capture(*OTHERS[name]), Options(inner="aot_eager"), plan)


FIELDS: dict[str, object] = {"name": "x", "op": "aten.mul", "shape": (1, 2), "stride": (9, 9), "dtype": "float16"}


@pytest.mark.parametrize("field", FIELDS)
def test_the_first_difference_is_named(field: str) -> None:
    plan = compress(capture(network, inputs()))
    changed = list(plan.decisions)
    changed[2] = replace(changed[2], tensor=replace(changed[2].tensor, **{field: FIELDS[field]}))
    edited = ledger.make_plan([replace(plan, decisions=tuple(changed))], OPTIONS)
    with pytest.raises(PlanError, match=rf"decision 2 \(.*\): {field} is"):
        compress(capture(network, inputs()), Options(inner="aot_eager"), edited)


def test_reordered_and_missing_decisions_are_named() -> None:
    plan = compress(capture(network, inputs()))
    first, second, *rest = plan.decisions
    for decisions, message in (((second, first, *rest), r"decision 0 .*name is"), (plan.decisions[:-1], "decides on")):
        edited = ledger.make_plan([replace(plan, decisions=decisions)], OPTIONS)
        with pytest.raises(PlanError, match=message):
            compress(capture(network, inputs()), Options(inner="aot_eager"), edited)


class TwoNeeds(torch.autograd.Function):
    """Saves a ReLU's result and a view of it: the one is mask and operand, the other is rebuilt into an operand."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = F.relu(a)
        ctx.save_for_backward(y, y.t(), w)
        return y @ w

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, t, w = ctx.saved_tensors
        return torch.where(y > 0, grads[0] @ w.t(), 0.0) + t.cos() @ grads[0], y.t() @ grads[0]


def two_needs(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return TwoNeeds.apply(x @ w, w)  # type: ignore[no-any-return, no-untyped-call]


def test_views_of_one_storage_with_two_needs_keep_their_mask() -> None:
    """One codec serves both views; a mask may be read from the decode only if that codec keeps zeros."""
    x, w = torch.randn(32, 32, requires_grad=True), torch.randn(32, 32, requires_grad=True)
    pair = capture(two_needs, (x, w), "default")
    plan = compress(pair, replace(OPTIONS, bits=2, operand_bits=2))
    lossy = [d for d in plan.decisions if d.codec == "affine"]
    assert lossy
    compares = [node for node in pair.bw.graph.nodes if "gt" in node.name and node.op == "call_function"]
    assert not compares or all(dict(d.params)["zero_preserving"] for d in lossy)


def test_functions_in_a_graph_have_names_that_last() -> None:
    """sym_max and its like are Python functions, which print with their address."""

    def make() -> fx.GraphModule:
        graph = fx.Graph()
        graph.output(graph.call_function(local_copy(), (graph.placeholder("x"), 2)))
        return fx.GraphModule(nn.Module(), graph)

    def local_copy() -> Any:
        def helper(x: int, y: int) -> int:
            return max(x, y)

        return helper

    assert fingerprint(make()) == fingerprint(make())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(33, 64), nn.Linear(64, 33), nn.LayerNorm(33)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        a, b = self.first(y).chunk(2, -1)
        z = torch.cat([F.relu(a), F.gelu(b)], -1)
        return x + F.hardtanh(self.second(z)).view(-1, 3, 11).flatten(1)


@pytest.mark.parametrize("mark", [True, False])
def test_dynamic_sizes_are_rewritten_once(mark: bool) -> None:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    module = Block()
    options = {"inner": "aot_eager", "min_bytes": 64, "lossy": False}
    compiled = torch.compile(module, backend="actcomp", options=options, dynamic=None if mark else True)
    for rows in (37, 20, 64):
        x = torch.randn(rows, 33)
        assert same(gradients(module, compiled, x, mark), gradients(module, module, x, mark))
    assert len(ledger.reports()) == 1
    assert any(d.codec == "valueset" for d in ledger.reports()[0].decisions)


def gradients(module: nn.Module, call: Any, x: torch.Tensor, mark: bool) -> list[torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    if mark:
        torch._dynamo.mark_dynamic(x, 0)
    call(x).sin().sum().backward()
    found = [parameter.grad for parameter in module.parameters()]
    return [grad for grad in (*found, x.grad) if grad is not None]
