"""Chunked logits against float64 autograd and against the same graphs with whole logits."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat, costs, ledger
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner, digest
from fxcompress.passes.alias import storage_nbytes
from fxcompress.passes.chunk_loss import chunk_loss
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.cut_within import saved_nbytes
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.liveness import Machine, find_peak
from fxcompress.plain_cut import plain_partition
from fxcompress.plan import LossDecision
from fxcompress.trace import explain

WORDS = 96
WIDTH = 16


class Net(nn.Module):
    """Embedding, one hidden layer, projection, and the loss that `kind` names."""

    def __init__(self, kind: str, *, tied: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=kind != "no bias" and not tied)
        if tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("importance", torch.rand(WORDS) + 0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.head(F.gelu(self.hidden(self.embedding(x))))
        return LOSSES[self.kind](self, z, y)


def _flat(z: Tensor, y: Tensor, **how: object) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten(), **how)  # type: ignore[arg-type]


def _focal(net: Net, z: Tensor, y: Tensor) -> Tensor:
    each = _flat(z, y, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).sum() / 7


def _margin(net: Net, z: Tensor, y: Tensor) -> Tensor:
    """Scale, shift and mask before the softmax; a weight per token and one per position after it."""
    forbidden = torch.zeros(WORDS, dtype=torch.bool, device=z.device)
    forbidden[5] = True
    z = torch.where(forbidden, -1e4, z * 0.7 - 0.3)
    each = F.cross_entropy(z.flatten(0, 1), y.clamp(6).flatten(), reduction="none").view_as(y)
    return (each * torch.linspace(0.5, 1.5, y.shape[1], dtype=z.dtype)).mean()


def _z_loss(net: Net, z: Tensor, y: Tensor) -> Tensor:
    z = z.flatten(0, 1)
    return _flat(z[None], y) + 1e-2 * (torch.logsumexp(z, -1) ** 2).mean()


def _accuracy(net: Net, z: Tensor, y: Tensor) -> Tensor:
    return _flat(z, y) * (1 + (z.argmax(-1) == y).double().mean().detach()).to(z.dtype)


def _probabilities(net: Net, z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with an entropy bonus: two softmaxes, whose derivative Inductor writes with `fma`."""
    p = torch.softmax(z, -1)
    return _flat(z, y) + 0.1 * (p * torch.log(p + 1e-6)).sum(-1).mean()


def _weighted(net: Net, z: Tensor, y: Tensor) -> Tensor:
    """A number per position and one per token, made in the graph."""
    z = z * torch.full((z.shape[1], 1), 0.5, dtype=z.dtype, device=z.device)
    return _flat(z * torch.full((*z.shape[:2], 1), 0.9, dtype=z.dtype, device=z.device), y)


def _advantage(net: Net, z: Tensor, y: Tensor) -> Tensor:
    """A clipped ratio of probabilities per token, as in policy gradients."""
    chosen = torch.log_softmax(z, -1).gather(-1, y.clamp(0)[..., None]).squeeze(-1)
    ratio = torch.exp(chosen - chosen.detach() * 0.9)
    weight = torch.linspace(-1, 1, y.shape[1], dtype=z.dtype)
    return -torch.minimum(ratio * weight, ratio.clamp(0.8, 1.2) * weight).mean() - 0.1 * chosen.mean()


LOSSES: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "plain": lambda net, z, y: _flat(z, y),
    "no bias": lambda net, z, y: _flat(z, y),
    "sum": lambda net, z, y: _flat(z, y, reduction="sum") / 5,
    "smoothed": lambda net, z, y: _flat(z, y, label_smoothing=0.1, weight=net.importance),
    "capped": lambda net, z, y: _flat(torch.tanh(z / 30) * 30, y),
    "shifted": lambda net, z, y: F.cross_entropy(z[:, :-1].reshape(-1, WORDS), y[:, 1:].reshape(-1)),
    "shifted 3d": lambda net, z, y: _flat(z[..., :-1, :].contiguous(), y[..., 1:].contiguous()),
    "padded": lambda net, z, y: _flat(z, F.pad(y, (0, 1), value=-100)[:, 1:]),
    "padded words": lambda net, z, y: _flat(z[..., : WORDS - 6], y.clamp(max=WORDS - 7)),
    "z loss": _z_loss,
    "focal": _focal,
    "margin": _margin,
    "accuracy": _accuracy,
    "squares": lambda net, z, y: ((z - y[..., None] / WORDS) ** 2).sum(-1).mean(),
    "probabilities": _probabilities,
    "weighted": _weighted,
    "advantage": _advantage,
    "sigmoid": lambda net, z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y.clamp(0), WORDS).to(z.dtype)),
}
UNSUPPORTED = {"accuracy": "depends on all tokens", "sigmoid": ""}


def compiled(module: nn.Module, inner: str, options: dict[str, object], **how: object) -> Callable[..., Tensor]:
    """`module` through AOTAutograd alone, or through all of Inductor but its code generation."""
    torch._dynamo.reset()

    def backend(gm: fx.GraphModule, examples: list[object]) -> Callable[..., object]:
        return compat.partition_with_inductor(gm, examples, ActcompPartitioner(Options(**options)))  # type: ignore[arg-type]

    if inner == "aot_eager":
        return torch.compile(module, backend="actcomp", options={"inner": inner, **options}, **how)
    return torch.compile(module, backend=backend, **how)


def gradients(module: nn.Module, run: Callable[..., Tensor], batch: tuple[Tensor, ...], scale: float = 1.0):
    module.zero_grad()
    loss = run(*batch)
    (loss * scale).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def batch(rows: int = 4, time: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(0, WORDS, (rows, time), generator=generator) for _ in range(2))
    y[0, : time // 3] = -100
    return x, y


def decision() -> LossDecision:
    return ledger.reports()[-1].loss


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(0)
    ledger.clear()


def valid(kind: str, y: Tensor) -> Tensor:
    """Losses that know no ignored index get none."""
    return y.clamp(0) if kind in ("margin", "squares", "sigmoid") else y


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind not in UNSUPPORTED])
def test_every_loss_is_exact_in_float64(kind, inner):
    net = Net(kind).double()
    x, y = batch()
    want = gradients(net, net, (x, valid(kind, y)))
    run = compiled(net, inner, {"lossy": False, "loss_chunks": 4})
    loss, got = gradients(net, run, (x, valid(kind, y)))
    assert decision().chunks == 4, decision().reason
    torch.testing.assert_close(loss, want[0], rtol=1e-12, atol=1e-12)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[1][name], rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_no_further_from_float64_than_whole_logits(dtype, tied):
    """fp32: as near within a tenth; bf16: nearer, or equal within the rounding of single elements."""
    net = Net("plain", tied=tied)
    x, y = batch(8, 64)
    _, exact = gradients(wide := copy.deepcopy(net).double(), wide, (x, y))
    errors = {}
    for chunks in (0, 8):
        narrow = copy.deepcopy(net).to(dtype)
        _, got = gradients(narrow, compiled(narrow, "aot_eager", {"lossy": False, "loss_chunks": chunks}), (x, y))
        errors[chunks] = {name: (got[name].double() - exact[name]).norm() / exact[name].norm() for name in exact}
    for name, error in errors[8].items():
        assert error <= 1.1 * errors[0][name] + 1e-9, (name, errors)


def test_autocast_and_a_scaled_loss():
    net = Net("plain")
    got = {}
    for chunks in (0, 5):
        with torch.autocast("cpu", torch.bfloat16):
            run = compiled(net, "aot_eager", {"lossy": False, "loss_chunks": chunks})
            got[chunks] = gradients(net, run, batch(), scale=1024.0)[1]
    for name in got[0]:
        torch.testing.assert_close(got[5][name], got[0][name], rtol=1e-2, atol=1e-2)


def test_all_tokens_ignored_is_what_it_was():
    net = Net("plain")
    x, y = batch()
    y.fill_(-100)
    got = [gradients(net, compiled(net, "aot_eager", {"lossy": False, "loss_chunks": c}), (x, y)) for c in (0, 4)]
    torch.testing.assert_close(got[1][0], got[0][0], equal_nan=True)
    for name in got[0][1]:
        torch.testing.assert_close(got[1][1][name], got[0][1][name], equal_nan=True)


def test_an_infinite_logit_makes_only_its_token_infinite():
    net = Net("plain").double()
    x, y = batch()
    with torch.no_grad():
        net.head.bias[3] = float("inf")
    got = [gradients(net, compiled(net, "aot_eager", {"lossy": False, "loss_chunks": c}), (x, y)) for c in (0, 4)]
    assert torch.equal(got[0][0].isnan(), got[1][0].isnan())
    for name in got[0][1]:
        assert torch.equal(got[0][1][name].isnan(), got[1][1][name].isnan())


def test_gradients_accumulate_and_a_retained_graph_gives_them_twice():
    net = Net("plain", tied=True).double()
    run = compiled(net, "aot_eager", {"lossy": False, "loss_chunks": 3})
    one, two = batch(seed=1), batch(seed=2)
    net.zero_grad()
    first, second = run(*one), run(*two)
    (first / 2).backward(retain_graph=True)
    (first / 2).backward()
    (second * 3).backward()
    got = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    (net(*one) + 3 * net(*two)).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_one_graph_serves_all_sizes(inner):
    net = Net("plain").double()
    run = compiled(net, inner, {"lossy": False, "loss_chunks": 4}, dynamic=True)
    for rows, time in ((4, 10), (3, 7), (5, 13), (2, 6)):
        x, y = batch(rows, time)
        _, got = gradients(net, run, (x, y))
        _, want = gradients(net, net, (x, y))
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-13)
    assert len(ledger.reports()) == 1 and decision().chunks == 4


class Nonlinear(torch.autograd.Function):
    """The identity, whose derivative is what `kind` names."""

    @staticmethod
    def forward(ctx, z: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        return z.clone()

    @staticmethod
    def backward(ctx, g: Tensor):
        if ctx.kind == "rounded":
            return torch.div(g, 1e-3, rounding_mode="floor") * 1e-3, None
        if ctx.kind == "filled":
            return g.masked_fill(g > 0, 1e-3), None
        return g.to(torch.float8_e5m2).to(g.dtype), None


@pytest.mark.parametrize("kind", ["rounded", "filled", "float8"])
def test_a_gradient_that_is_not_linear_in_the_tangent_keeps_logits_whole(kind):
    net = Net("plain")

    def run(x: Tensor, y: Tensor) -> Tensor:
        return _flat(Nonlinear.apply(net.head(F.gelu(net.hidden(net.embedding(x)))), kind), y)

    torch._dynamo.reset()
    options = {"inner": "aot_eager", "lossy": False, "loss_chunks": 4}
    got = gradients(net, torch.compile(run, backend="actcomp", options=options), batch(), scale=0.25)
    want = gradients(net, run, batch(), scale=0.25)
    assert decision().chunks == 0 and decision().reason
    for name in want[1]:
        torch.testing.assert_close(got[1][name], want[1][name])


def test_a_bias_per_token_keeps_logits_whole():
    net = Net("no bias")
    shift = torch.randn(40, WORDS)

    def run(x: Tensor, y: Tensor) -> Tensor:
        hidden = F.gelu(net.hidden(net.embedding(x))).flatten(0, 1)
        return F.cross_entropy(torch.addmm(shift, hidden, net.head.weight.T), y.flatten())

    torch._dynamo.reset()
    options = {"inner": "aot_eager", "lossy": False, "loss_chunks": 4}
    got = gradients(net, torch.compile(run, backend="actcomp", options=options), batch())
    want = gradients(net, run, batch())
    assert decision().chunks == 0 and "differs between tokens" in decision().reason
    torch.testing.assert_close(got[1]["head.weight"], want[1]["head.weight"])


def test_what_cannot_be_written_keeps_logits_whole(monkeypatch):
    """The joint graph is untouched where an operator refuses a chunk's sizes."""
    monkeypatch.setattr("fxcompress.passes.chunk_loss.rewrite_loss", _refuse)
    net = Net("plain")
    gradients(net, compiled(net, "aot_eager", {"lossy": False, "loss_chunks": 4}), batch())
    assert decision().chunks == 0 and "cannot be written: sizes do not match" in decision().reason


def _refuse(*args: object, **kwargs: object) -> int:
    raise RuntimeError("sizes do not match")


def test_a_second_projection_is_named():
    net, second = Net("plain"), nn.Linear(WIDTH, WORDS)

    def run(x: Tensor, y: Tensor) -> Tensor:
        hidden = F.gelu(net.hidden(net.embedding(x)))
        return _flat(net.head(hidden), y) + _flat(second(hidden), y)

    torch._dynamo.reset()
    options = {"inner": "aot_eager", "lossy": False, "loss_chunks": 4}
    got = gradients(net, torch.compile(run, backend="actcomp", options=options), batch())
    want = gradients(net, run, batch())
    assert decision().chunks == 4 and "one projection per graph is chunked; whole: " in decision().reason
    for name in want[1]:
        torch.testing.assert_close(got[1][name], want[1][name])


class Other(nn.Module):
    """Programs whose logits must stay whole."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net, self.second = kind, Net("plain"), nn.Linear(WORDS, 4)

    def forward(self, x: Tensor, y: Tensor):
        net, kind = self.net, self.kind
        h = F.gelu(net.hidden(net.embedding(x)))
        z = net.head(h)
        loss = _flat(z, y)
        if kind == "returned":
            return loss, z
        if kind == "used again":
            return loss + self.second(z).square().mean()
        if kind == "no scalar":
            return _flat(z, y, reduction="none")
        if kind == "two losses":
            return loss, torch.logsumexp(z, -1).mean()
        if kind == "dropped":
            return _flat(F.dropout(z, 0.5), y)
        if kind == "sorted over tokens":
            return loss + z.cumsum(1).mean()
        if kind == "batch statistics":
            each = _flat(z, y, reduction="none")
            return (each / each.std()).mean()
        return _flat(z.transpose(1, 2).transpose(1, 2), y) if kind == "fine" else F.cross_entropy(z.transpose(1, 2), y)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("returned", "the caller gets it"),
        ("used again", "is read by aten."),
        ("no scalar", "its loss is no scalar"),
        ("two losses", "several losses"),
        ("sorted over tokens", "is read by aten.cumsum"),
        ("batch statistics", "through aten."),
        ("channels first", "token dimensions are taken apart"),
        ("dropped", "is read by"),
    ],
)
def test_what_needs_whole_logits_keeps_them_and_says_why(kind, words):
    other = Other(kind)
    x, y = batch()
    run = compiled(other, "aot_eager", {"lossy": False, "loss_chunks": 4})
    torch.manual_seed(1)
    result = run(x, y)
    loss = result[0] if isinstance(result, tuple) else result.sum()
    loss.backward()
    assert decision().chunks == 0 and words in decision().reason, decision()
    torch.manual_seed(1)
    eager = other(x, y)
    torch.testing.assert_close(loss, eager[0] if isinstance(eager, tuple) else eager.sum())


def test_logits_that_leave_their_graph_are_named():
    net = nn.Sequential(nn.Embedding(512, WIDTH), nn.Linear(WIDTH, 512))
    x = torch.randint(0, 512, (8, 32))
    run = compiled(net, "aot_eager", {"lossy": False, "loss_chunks": 4})
    _flat_of(run(x), x).backward()
    assert decision().shape == (256, 512) and "the caller gets it; compile a function" in decision().reason
    ledger.clear()
    torch._dynamo.reset()
    run = torch.compile(
        lambda x: _flat_of(net(x), x), backend="actcomp", options={"inner": "aot_eager", "loss_chunks": 4}
    )
    run(x).backward()
    assert decision().chunks == 4


def _flat_of(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("kind, chunks", [("used again", 4), ("fine", 0)])
def test_logits_that_stay_whole_are_encoded_by_need_and_the_report_says_so(kind, chunks):
    other = Other(kind)
    run = compiled(other, "inductor", {"loss_chunks": chunks, "bits": 2, "operand_bits": 2})
    run(*batch(8, 64))
    graph = ledger.reports()[-1]
    assert graph.loss.chunks == 0 and graph.loss.reason
    wide = [d for d in graph.decisions if d.tensor.shape[-1:] == (WORDS,) and d.tensor.need == "logits"]
    assert len(wide) == 1 and wide[0].codec == "affine" and dict(wide[0].params)["bits"] == 8
    assert "result of a softmax" in wide[0].reason
    run = compiled(other, "inductor", {"loss_chunks": chunks, "lossy": False})
    run(*batch(8, 64))
    kept = {d.tensor.name: d for d in ledger.reports()[-1].decisions}[wide[0].tensor.name]
    assert (kept.codec, kept.reason) == ("keep", "lossy codecs are off")


def test_evaluation_in_between_changes_nothing():
    net = Net("plain", tied=True)
    run = compiled(net, "aot_eager", {"lossy": False, "loss_chunks": 4})
    before = gradients(net, run, batch())
    net.eval()
    with torch.no_grad():
        assert torch.equal(run(*batch(seed=1)), net(*batch(seed=1)))
    with torch.inference_mode():
        assert torch.equal(run(*batch(seed=1)), net(*batch(seed=1)))
    net.train()
    after = gradients(net, run, batch())
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_the_report_compares_with_pytorchs_own_step():
    data = batch(8, 64)
    joint, count = captured(Net("plain"), data)
    fw, bw = plain_partition(copy_graph(joint), (), num_fwd_outputs=count)
    compiled(Net("plain"), "inductor", {"loss_chunks": 4})(*data)
    graph = ledger.reports()[-1]
    assert graph.loss.chunks == 4
    assert graph.peak_before == find_peak(fw, bw, count, Machine(fused=True))
    saved = [pair.fw for pair in find_saved(fw, bw, num_fwd_outputs=count)]
    assert graph.plain_saved_bytes == saved_nbytes(saved)


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_chunks_cost_what_their_graph_costs_more():
    """Modelled time: calls of subgraphs count as what they call, and beyond calls it is that of reading and adding."""
    joint, count = captured(Net("plain"), batch(8, 64))
    seconds = []
    for disabled in ((), ("outline",)):
        chunked = chunk_loss(joint, count, Options(loss_chunks=8, disable_passes=disabled))
        seconds.append(costs.step_s(chunked.gm) - costs.step_s(joint))
        assert chunked.decision.extra_s > 0
    assert seconds[0] == pytest.approx(seconds[1], rel=0.1)
    fewer, more = (chunk_loss(joint, count, Options(loss_chunks=chunks)).decision.extra_s for chunks in (2, 8))
    weight = 4 * WORDS * WIDTH
    traffic = 6 * 4 * weight / costs.rates_of(torch.device("cpu")).bytes_per_s
    calls = 6 * costs.rates_of(torch.device("cpu")).call_s
    assert traffic < more - fewer < traffic + 10 * calls


def test_float16_gradients_need_their_scale():
    net = Net("plain").half()
    gradients(net, compiled(net, "aot_eager", {"lossy": False, "loss_chunks": 4}), batch())
    assert "float16" in decision().reason


def test_a_frozen_head_and_a_frozen_body():
    for frozen in ("head", "hidden", "embedding"):
        net = Net("plain").double()
        getattr(net, frozen).requires_grad_(False)
        _, want = gradients(net, net, batch())
        _, got = gradients(net, compiled(net, "aot_eager", {"lossy": False, "loss_chunks": 4}), batch())
        assert decision().chunks == 4 and got.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-13)


def test_auto_leaves_small_logits_whole_and_zero_turns_it_off():
    net = Net("plain")
    gradients(net, compiled(net, "aot_eager", {"lossy": False}), batch())
    assert (decision().chunks, decision().shape) == (0, ())
    gradients(net, compiled(net, "aot_eager", {"lossy": False, "loss_chunks": 0}), batch())
    assert decision().reason == "off"


def captured(net: nn.Module, data: tuple[Tensor, ...], inner: str = "inductor") -> tuple[fx.GraphModule, int]:
    """The joint graph that a partitioner gets."""
    found: list[tuple[fx.GraphModule, int]] = []

    class Recorder(ActcompPartitioner):
        def __call__(self, gm, joint_inputs, *, num_fwd_outputs, **rest):
            found.append((gm, num_fwd_outputs))
            return super().__call__(gm, joint_inputs, num_fwd_outputs=num_fwd_outputs, **rest)

    torch._dynamo.reset()

    def backend(gm: fx.GraphModule, examples: list[object]) -> Callable[..., object]:
        recorder = Recorder(Options(loss_chunks=0))
        if inner == "aot_eager":
            return compat.compile_with_aot_eager(gm, examples, recorder)
        return compat.partition_with_inductor(gm, examples, recorder)

    torch.compile(net, backend=backend)(*data)
    return found[0]


def large_nodes(gm: fx.GraphModule, numel: int) -> list[str]:
    """Floats of `numel` elements or more that some operator makes, subgraphs included."""
    found = []
    for module in gm.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                val = node.meta.get("val")
                if node.op == "call_function" and isinstance(val, Tensor) and storage_nbytes(val) >= 4 * numel:
                    found.append(node.name)
    return found


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("outline", [True, False])
@pytest.mark.parametrize("kind", ["plain", "smoothed", "shifted", "z loss", "margin"])
def test_no_value_of_the_logits_size_is_left(kind, outline):
    x, y = batch(8, 32)
    joint, count = captured(Net(kind), (x, valid(kind, y)))
    options = Options(loss_chunks=8, disable_passes=() if outline else ("outline",))
    before = [node.name for node in joint.graph.nodes]
    chunked = chunk_loss(joint, count, options)
    assert chunked.decision.chunks == 8
    assert [node.name for node in joint.graph.nodes] == before, "the joint graph is not edited"
    assert large_nodes(joint, x.numel() * WORDS // 2)
    assert not large_nodes(chunked.gm, x.numel() * WORDS // 2)


def test_the_number_of_chunks_is_part_of_every_cache_key():
    keys = {digest(Options(loss_chunks=chunks), None) for chunks in (0, 2, 4, "auto")}
    assert len(keys) == 4


def test_a_plan_replays_its_chunks(tmp_path):
    net = Net("plain")
    path = str(tmp_path / "plan.json")
    first = gradients(net, compiled(net, "aot_eager", {"loss_chunks": 4, "save_plan": path}), batch())
    ledger.clear()
    again = gradients(net, compiled(net, "aot_eager", {"plan": path}), batch())
    assert decision().chunks == 4
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


ROWWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda z: z * 0.5,
    "shift": lambda z: z + torch.linspace(-1, 1, z.shape[-1], dtype=z.dtype),
    "tanh": lambda z: torch.tanh(z),
    "mask": lambda z: z.masked_fill(torch.arange(z.shape[-1]) % 3 == 0, -5.0),
    "clamp": lambda z: z.clamp(-1, 1.5),
    "center": lambda z: z - z.mean(-1, keepdim=True),
    "largest": lambda z: z - z.amax(-1, keepdim=True),
    "softmax": lambda z: torch.softmax(z, -1) * 3,
    "log_softmax": lambda z: torch.log_softmax(z, -1),
    "slice": lambda z: z[..., 1:-1],
    "flat": lambda z: z.reshape(-1, z.shape[-1]) if z.dim() == 3 else z.reshape(4, -1, z.shape[-1]),
    "turn": lambda z: (z.transpose(-1, -2) * 1.5).transpose(-1, -2),
}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda z: z.logsumexp(-1).mean(),
    "sum": lambda z: z.square().sum(),
    "weighted": lambda z: (z.sum(-1).flatten() * torch.linspace(0, 1, z[..., 0].numel(), dtype=z.dtype)).sum(),
}


class Program(nn.Module):
    """A projection, row-wise operators, and a reduction to one number."""

    def __init__(self, steps: tuple[str, ...], end: str) -> None:
        super().__init__()
        self.steps, self.end = steps, end
        self.head = nn.Linear(5, 24)

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(x)
        for step in self.steps:
            z = ROWWISE[step](z)
        return ENDS[self.end](z)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.sampled_from(sorted(ROWWISE)), max_size=4).map(tuple),
    end=st.sampled_from(sorted(ENDS)),
    time=st.integers(1, 9),
    chunks=st.integers(2, 11),
)
def test_random_programs_are_exact_or_declined(steps, end, time, chunks):
    torch.manual_seed(0)
    ledger.clear()
    program = Program(steps, end).double()
    x = torch.randn(4, time, 5, dtype=torch.float64, requires_grad=True)
    run = compiled(program, "aot_eager", {"lossy": False, "loss_chunks": chunks, "strict": True})
    inputs = (x, *program.parameters())
    got = torch.autograd.grad(run(x), inputs)
    want = torch.autograd.grad(program(x), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def hand_made(loss: Callable[..., Tensor], *primals: Tensor) -> fx.GraphModule:
    """A joint graph without Dynamo and AOTAutograd: loss, then the gradient of every float primal."""

    def joint(primals_1: Tensor, primals_2: Tensor, primals_3: Tensor, tangents_1: Tensor) -> list[Tensor]:
        inputs = [primals_1.detach().requires_grad_(), primals_2.detach().requires_grad_()]
        value = loss(*inputs, primals_3)
        return [value, *torch.autograd.grad(value, inputs, tangents_1)]

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(primal) for primal in (*primals, torch.ones((), dtype=primals[0].dtype))]
        return make_fx(joint)(*fakes)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tokens, chunks", [(12, 2), (13, 4), (3, 8), (16, 16)])
def test_hand_made_joint_graphs(tokens, chunks, reduction):
    h, w = torch.randn(tokens, 5, dtype=torch.float64), torch.randn(24, 5, dtype=torch.float64)
    y = torch.randint(0, 24, (tokens,))
    gm = hand_made(lambda h, w, y: F.cross_entropy(h @ w.t(), y, reduction=reduction), h, w, y)
    chunked = chunk_loss(gm, 1, Options(loss_chunks=chunks, inner="aot_eager"))
    assert (chunked.extra, chunked.decision.chunks) == (2, chunks)
    tangent = torch.tensor(0.7, dtype=torch.float64)
    loss, *saved_and_gradients = chunked.gm(h, w, y, tangent)
    want = gm(h, w, y, tangent)
    torch.testing.assert_close(loss, want[0])
    for unit, got, gradient in zip(saved_and_gradients[:2], saved_and_gradients[2:], want[1:], strict=True):
        torch.testing.assert_close(got, gradient)
        torch.testing.assert_close(unit * tangent, gradient)
    again = chunk_loss(chunked.gm, 3, Options(loss_chunks=chunks, inner="aot_eager"))
    assert again.decision.chunks == 0, "what is chunked is not chunked again"


def test_explain_shows_the_decision():
    from bench.models.zoo import gpt2

    plan = explain(gpt2, options=Options(loss_chunks=4))
    (graph,) = plan.graphs
    assert graph.loss.chunks == 4 and graph.loss.shape == (256, 256) and graph.loss.layer == "model.lm_head"
    saved = [d for d in graph.decisions if d.tensor.refusal.startswith("a gradient")]
    assert {d.codec for d in saved} == {"keep"} and len(saved) == 2


class Counting(nn.Module):
    """Reads a buffer in its loss, and changes it afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net("plain")
        self.register_buffer("importance", torch.ones(WORDS))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.net.head(self.net.embedding(x))
        loss = F.cross_entropy(z.flatten(0, 1), y.flatten(), weight=self.importance.clone())
        self.importance.mul_(0.5).add_(torch.linspace(0, 1, WORDS))
        return loss


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_a_buffer_that_changes_afterwards_is_read_as_it_was(inner):
    module = Counting()
    other = copy.deepcopy(module)
    run = compiled(module, inner, {"lossy": False, "loss_chunks": 4})
    for seed in (1, 2):
        loss, got = gradients(module, run, batch(seed=seed))
        want = gradients(other, other, batch(seed=seed))
        torch.testing.assert_close(loss, want[0])
        torch.testing.assert_close(got["net.head.weight"], want[1]["net.head.weight"])
        torch.testing.assert_close(module.importance, other.importance)
    assert decision().chunks == 4


@pytest.mark.slow
def test_inductor_is_exact_and_keeps_one_chunk_at_a_time():
    from bench.measure import peak_bytes

    net = Wide()
    x, y = torch.randint(0, Wide.WORDS, (8, 64)), torch.randint(0, Wide.WORDS, (8, 64))
    logits = x.numel() * Wide.WORDS * 4
    got, memory = {}, {}
    for name, how in {"plain": {}, "chunks": {"options": {"lossy": False, "loss_chunks": 8}}}.items():
        torch._dynamo.reset()
        run = torch.compile(net, backend="actcomp" if how else "inductor", **how)
        got[name] = gradients(net, run, (x, y))
        memory[name] = peak_bytes(lambda run=run: torch.autograd.grad(run(x, y), list(net.parameters())))
    torch.testing.assert_close(got["chunks"][0], got["plain"][0], rtol=1e-6, atol=0)
    for name, want in got["plain"][1].items():
        assert (got["chunks"][1][name] - want).norm() <= 1e-6 * want.norm(), name
    assert memory["plain"].peak_bytes - memory["chunks"].peak_bytes >= logits * (1 - 1.5 / 8)


@pytest.mark.slow
def test_inductor_compiles_symbolic_sizes():
    net = Net("plain")
    torch._dynamo.reset()
    run = torch.compile(net, backend="actcomp", options={"lossy": False, "loss_chunks": 4}, dynamic=True)
    for rows, time in ((4, 10), (3, 7)):
        x, y = batch(rows, time)
        _, got = gradients(net, run, (x, y))
        _, want = gradients(net, net, (x, y))
        for name in want:
            torch.testing.assert_close(got[name], want[name])
    assert decision().chunks == 4


class Wide(nn.Module):
    """Few parameters and many words."""

    WORDS = 4000

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(self.WORDS, 8), nn.Linear(8, self.WORDS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(torch.tanh(self.embedding(x))).flatten(0, 1), y.flatten())
