"""faults.md, section Autograd and programs: what the program itself may contain."""

import functools
import warnings

import pytest
import torch
from step_pairs import EXACT, LOSSY, compare, compare_both, mlp, train
from torch import nn
from torch._higher_order_ops import scan, while_loop
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fxcompress import ledger

BOTH = pytest.mark.parametrize("options", [EXACT, LOSSY], ids=["exact", "8 bit"])


class Program(nn.Module):
    def __init__(self, function, width: int = 64) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(width, width), nn.Linear(width, width), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.function(self, x)))


def program(function, rows: int = 16):
    return lambda: (Program(function), (torch.randn(rows, 64, requires_grad=True),))


def body(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.dropout(F.gelu(x @ weight), 0.3)


def test_checkpointed_regions_with_dropout():
    ours = compare_both(program(lambda m, x: m.first(checkpoint(body, x, m.first.weight, use_reentrant=False))))
    regions = [d for graph in ours.graphs for d in graph.decisions if "gelu" in d.tensor.op]
    assert not regions, "what the region computes is not saved"


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE])
def test_selective_checkpoint_policies(policy: CheckpointPolicy):
    def choose(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return policy if op is torch.ops.aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, choose)

    def function(m: Program, x: torch.Tensor) -> torch.Tensor:
        return m.first(checkpoint(body, x, m.first.weight, use_reentrant=False, context_fn=contexts))

    ours = compare_both(program(function))
    saved = [d.tensor.op for graph in ours.graphs for d in graph.decisions if not d.tensor.refusal]
    assert ("aten.mm" in saved) == (policy is CheckpointPolicy.MUST_SAVE), saved


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return torch.sin(x) * weight

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return grad * torch.cos(x) * weight * 0.5, (grad * torch.sin(x)).sum(0)


def test_custom_autograd_functions():
    compare_both(program(lambda m, x: Scaled.apply(m.first(x), m.first.bias)))


def test_cond():
    def branches(m: Program, x: torch.Tensor) -> torch.Tensor:
        y = m.first(x)
        return torch.cond(y.sum() > 0, lambda a: torch.sin(a) * a, lambda a: torch.cos(a) * a, (y,))

    compare_both(program(branches), encodes=None)


def test_while_loop():
    def loop(m: Program, x: torch.Tensor) -> torch.Tensor:
        start = (torch.zeros((), dtype=torch.int64), m.first(x).detach())
        _, y = while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, torch.sin(a) + 0.5), start)
        return y * m.first(x)

    compare_both(program(loop), encodes=None)


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="AOTAutograd of torch 2.11 refuses the backward of a scan")
def test_scan():
    def running(m: Program, x: torch.Tensor) -> torch.Tensor:
        def step(carry: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            new = torch.tanh(carry + row)
            return new, new * 2

        return scan(step, torch.zeros(64), m.first(x), dim=0)[1]

    compare_both(program(running), encodes=None)


def _counting(options: dict[str, object]):
    """Our backend, and the list of graphs that it was called with."""
    from fxcompress import actcomp

    calls = []

    def backend(gm, inputs):
        calls.append(gm)
        return actcomp(gm, inputs, options=options)

    return backend, calls


@BOTH
def test_one_compile_serves_all_batch_sizes_and_lengths(options: dict[str, object]):
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(32, 64), nn.LayerNorm(64)
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 32)

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            x = self.embed(index)
            y = F.scaled_dot_product_attention(x, x, x, is_causal=True)
            return self.last(F.dropout(F.gelu(self.first(self.norm(x + y))), 0.2)).log_softmax(-1)

    def run(backend: object) -> list[torch.Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Sequence()
        fast = torch.compile(model, backend=backend, dynamic=True)
        results = []
        for rows, length in ((4, 16), (3, 9), (7, 33), (2, 128), (16, 17)):
            counts.append(len(calls))
            fast(torch.randint(0, 32, (rows, length))).square().sum().backward()
            results.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        return results

    backend, calls = _counting(options)
    counts: list[int] = []
    ours = run(backend)
    assert len(calls) == counts[1], "the first sizes were the only ones compiled for"
    decisions = [d for graph in ledger.reports() for d in graph.decisions]
    assert any(isinstance(size, str) for d in decisions for size in d.tensor.shape)
    assert any(d.codec not in ("keep", "shared") for d in decisions)
    plain = run("aot_eager")
    for a, b in zip(plain, ours, strict=True):
        assert torch.equal(a, b) or (options is LOSSY and float((a - b).norm() / a.norm()) < 0.03)


@BOTH
def test_sizes_that_become_dynamic_later_recompile_once(options: dict[str, object]):
    backend, calls = _counting(options)
    model = mlp(64, nn.GELU(), nn.Tanh())
    fast = torch.compile(model, backend=backend)
    for rows in (8, 9, 10, 33, 64):
        fast(torch.randn(rows, 64)).square().sum().backward()
    assert len(calls) == 2


def test_graph_breaks_make_one_plan_per_graph_and_reports_sum():
    def broken(m: Program, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(F.gelu(m.first(x)), 0.2)
        torch._dynamo.graph_break()
        y = F.gelu(m.first(y))
        if y.sum().item() > 1e9:
            y = y * 2
        return y

    ours = compare_both(program(broken))
    assert len(ours.graphs) > 1
    assert ledger.make_plan(ours.graphs, _options()).graphs == tuple(ours.graphs)


def _options():
    from fxcompress import Options

    return Options(inner="aot_eager")


def test_fullgraph():
    compare_both(program(lambda m, x: F.gelu(m.first(x))), fullgraph=True)


def test_blocks_compiled_one_by_one():
    class Stack(nn.Module):
        def __init__(self, backend: str, options: dict[str, object] | None) -> None:
            super().__init__()
            blocks = [mlp(64, nn.GELU(), nn.Dropout(0.1)) for _ in range(4)]
            self.blocks = nn.ModuleList(torch.compile(b, backend=backend, options=options) for b in blocks)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x

    def run(backend: str, options: dict[str, object] | None) -> list[torch.Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Stack(backend, options)
        model(torch.randn(16, 64)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, exact = run("aot_eager", None), run("actcomp", EXACT)
    assert all(torch.equal(a, b) for a, b in zip(plain, exact, strict=True))
    ledger.clear()
    run("actcomp", LOSSY)
    assert 1 <= len({graph.fingerprint for graph in ledger.reports()}) <= 2


def _amp(backend: str, options: dict[str, object] | None) -> list[torch.Tensor]:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    model = mlp(64, nn.GELU(), nn.LayerNorm(64), nn.Dropout(0.1))
    fast = torch.compile(model, backend=backend, options=options)
    with torch.autocast("cpu", torch.bfloat16):
        y = fast(torch.randn(16, 64))
        loss = F.cross_entropy(y, torch.arange(16))
    loss.backward()
    return [y.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]


def test_autocast_bf16():
    plain = _amp("aot_eager", None)
    exact = _amp("actcomp", EXACT)
    assert all(torch.equal(a, b) for a, b in zip(plain, exact, strict=True))
    lossy = _amp("actcomp", LOSSY)
    assert torch.equal(plain[0], lossy[0])
    assert all(float((a - b).norm() / a.norm()) < 0.05 for a, b in zip(plain[1:], lossy[1:], strict=True))
    saved = [d.tensor for graph in ledger.reports() for d in graph.decisions]
    assert not [t for t in saved if "_to_copy" in t.op and 16 not in t.shape], "copies of weights are rebuilt"


@BOTH
def test_compiled_autograd(options: dict[str, object]):
    def run(backend: str, chosen: dict[str, object] | None) -> list[torch.Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = mlp(64, nn.GELU(), nn.Tanh())
        fast = torch.compile(model, backend=backend, options=chosen)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            fast(torch.randn(16, 64)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for a, b in zip(run("aot_eager", None), run("actcomp", options), strict=True):
        assert torch.equal(a, b) or (options is LOSSY and float((a - b).norm() / a.norm()) < 0.03)


def test_export_is_unaffected():
    model, x = mlp(64, nn.GELU()).eval(), torch.randn(16, 64)
    before = torch.export.export(model, (x,))
    torch.compile(model, backend="actcomp", options=LOSSY)(x).sum().backward()
    after = torch.export.export(model, (x,))
    assert str(before.graph) == str(after.graph)
    assert torch.equal(after.module()(x), model(x))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inference_calls_no_partitioner_and_warns_of_nothing(monkeypatch, context):
    called = []
    monkeypatch.setattr("fxcompress.partition.ActcompPartitioner.__call__", lambda *a, **k: called.append(a))
    with warnings.catch_warnings(), context():
        warnings.simplefilter("error")
        torch.compile(mlp(64, nn.GELU()), backend="actcomp", options=LOSSY)(torch.randn(16, 64))
    assert not called and not ledger.reports() and not ledger.unchanged()


def test_nothing_to_save_and_nothing_above_the_floor():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.bias

    nothing = compare(lambda: (Sum(), (torch.randn(16, 64),)), LOSSY, encodes=False)
    small = compare(lambda: (mlp(), (torch.randn(4, 32),)), {**LOSSY, "min_bytes": 1 << 20}, encodes=False)
    for step in (nothing, small):
        assert not step.warned and not step.unchanged
    assert train(lambda: (mlp(), (torch.randn(4, 32),)), "actcomp", LOSSY).encoded
