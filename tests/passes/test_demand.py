"""Need classes, against what a changed saved value really changes in the executed backward."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import fx

from fxcompress.facts import Need
from fxcompress.passes.demand import find_demands
from fxcompress.passes.find_saved import SavedPair, find_saved, outputs
from fxcompress.passes.find_statistics import is_statistic
from fxcompress.passes.ops import LEAF_FINISH, op_name
from fxcompress.passes.save_predicates import expose_predicates
from fxcompress.passes.values import find_values
from fxcompress.testing_graphs import Pair, Partition, backward_inputs, capture, node_values, run
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=8, derandomize=True)
LEAF = ("operand", "operand+mask")


def matrices(count: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(16, 16, generator=generator, dtype=torch.float64) / 4 for _ in range(count))
    return tuple(value.to(dtype).requires_grad_() for value in made)


def needs(pair: Pair) -> dict[str, Need]:
    expose_predicates(pair.bw)
    found = find_demands(pair.bw, saved_of(pair), find_values(pair.fw))
    return {node.name: demand.need for node, demand in found.items()}


def name_of(pair: Pair, op: str) -> str:
    """The first saved tensor that `op` made, moved at most."""
    for saved in saved_of(pair):
        node = saved.fw
        while op_name(node) in ("detach", "t", "view", "getitem"):
            node = node.all_input_nodes[0]
        if op_name(node) == op:
            return saved.bw.name
    raise AssertionError(f"{op} is not saved")


def rebuilding(function: Callable[..., torch.Tensor], partition: Partition = "bases") -> Pair:
    """`capture` as `compat.partition` cuts: operands of products may be rebuilt."""
    with torch._functorch.config.patch(ban_recompute_materialized_backward=False):
        return capture(function, matrices(), partition)


def saved_of(pair: Pair) -> list[SavedPair]:
    return find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)


Change = Callable[[torch.Tensor], torch.Tensor]


def larger(x: torch.Tensor) -> torch.Tensor:
    """`x` with other magnitudes and the same signs."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (x * (1 + 0.05 * noise)).to(x.dtype)


def backward_values(pair: Pair, name: str = "", change: Change = larger, tangent: float = 1) -> dict[fx.Node, object]:
    """What every backward node computes when the saved value `name` is changed and tangents are scaled."""
    saved = run(pair).saved
    positions = {p.bw.name: p.position - pair.num_fwd_outputs for p in saved_of(pair)}
    values = [change(value) if i == positions.get(name) else value for i, value in enumerate(saved)]
    incoming = backward_inputs(values, [value * tangent for value in pair.tangents])
    return dict(node_values(pair.bw, incoming))


def differing(left: dict[fx.Node, object], right: dict[fx.Node, object]) -> set[fx.Node]:
    tensors = {node: value for node, value in left.items() if isinstance(value, torch.Tensor)}
    return {node for node, value in tensors.items() if not torch.equal(value, right[node])}  # type: ignore[arg-type]


def spreads(pair: Pair, name: str, change: Change = larger) -> bool:
    """Whether an error in saved `name` enters a gradient that anything but a leaf's accumulation still reads."""
    plain = backward_values(pair)
    gradients = differing(plain, backward_values(pair, tangent=2.0))
    wrong = differing(plain, backward_values(pair, name, change)) & gradients
    users = {user for node in wrong for user in node.users if user.op != "output"}
    return any(op_name(user) not in LEAF_FINISH and op_name(user) != "getitem" for user in users)


@SEARCH
@given(programs(max_steps=6))
def test_operands_reach_leaf_gradients_only(program: Program) -> None:
    """Whatever else a class promises, an error of an operand must not enter another activation's gradient."""
    pair = capture(program, program.inputs(), program.partition)
    for name, need in needs(pair).items():
        if need in LEAF:
            assert not spreads(pair, name), name


@SEARCH
@given(programs(max_steps=6))
def test_finding_twice_finds_the_same_and_edits_nothing(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    assert needs(pair) == needs(pair)


def taken_apart(scores: torch.Tensor) -> torch.Tensor:
    """A softmax as Inductor decomposes it."""
    exponentials = (scores - scores.amax(1, keepdim=True)).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


TABLE: dict[str, tuple[Callable[..., torch.Tensor], str, Need]] = {
    "gelu at the end": (lambda x, w, v: F.gelu(x @ w), "mm", "derivative"),
    "tanh beside a residual": (lambda x, w, v: x + (x @ w).tanh() * 2, "tanh", "derivative"),
    "tanh near the end": (lambda x, w, v: (x @ w).tanh() * 2, "tanh", "propagating"),
    "exponent": (lambda x, w, v: (x @ w) + v * (2 * (x @ v).tanh()).exp(), "tanh", "logits"),
    "exponent of a decay": (lambda x, w, v: x @ w + v * (-F.softplus((x @ v).tanh())).exp(), "tanh", "derivative"),
    "softplus taken apart": (lambda x, w, v: x + (2 * (x @ v).tanh()).exp().log1p(), "tanh", "derivative"),
    "rebuilt operand": (lambda x, w, v: F.gelu(x @ w) @ v, "mm", "propagating"),
    "operand and derivative": (lambda x, w, v: torch.tanh(x @ w) @ v, "tanh", "propagating"),
    "operand": (lambda x, w, v: (x @ w) @ v, "mm", "operand"),
    "operand and mask": (lambda x, w, v: F.relu(x @ w) @ v, "relu", "operand+mask"),
    "both operands": (lambda x, w, v: F.silu(x @ w) @ F.silu(x @ v), "mm", "propagating"),
    "log probabilities": (lambda x, w, v: torch.log_softmax(x @ w, 1), "_log_softmax", "statistic"),
    "logits": (lambda x, w, v: (x @ w).logsumexp(1), "mm", "logits"),
    "scores": (lambda x, w, v: taken_apart(x @ w) * v, "mm", "logits"),
    "scores and values": (lambda x, w, v: taken_apart(x @ w) @ v, "mm", "logits"),
    "probabilities": (lambda x, w, v: (x @ w).softmax(1) * 2, "_softmax", "logits"),
    "probabilities and values": (lambda x, w, v: (x @ w).softmax(1) @ v, "_softmax", "propagating"),
    "statistic": (lambda x, w, v: F.layer_norm(x @ w, (16,)), "native_layer_norm", "statistic"),
    "index": (lambda x, w, v: (x @ w).gather(1, (x @ v).argsort(1)), "sort", "integer"),
    "mask": (lambda x, w, v: torch.where(x @ w > 0, x, v), "gt", "predicate"),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("partition", ["bases", "min_cut"])
def test_classes_of_known_programs(name: str, partition) -> None:
    function, tensor, need = TABLE[name]
    pair = rebuilding(function, partition)
    assert needs(pair)[name_of(pair, tensor)] == need, needs(pair)


@pytest.mark.parametrize("name", [name for name, (_, _, need) in TABLE.items() if need in ("propagating", *LEAF)])
def test_execution_tells_the_same_classes(name: str) -> None:
    function, tensor, need = TABLE[name]
    pair = rebuilding(function)
    saved = name_of(pair, tensor)
    assert needs(pair)[saved] == need
    assert spreads(pair, saved) == (need == "propagating")


def test_a_zero_pattern_is_asked_for_and_reaches_other_gradients() -> None:
    """Positive values that stay positive change leaf gradients only; a zero that does not stay zero changes others."""
    pair = capture(TABLE["operand and mask"][0], matrices())
    needs(pair)
    assert not spreads(pair, "relu") and spreads(pair, "relu", lambda x: x + 1e-3)


class Gated(torch.autograd.Function):
    """Saves one value that is a product's operand and whose sign decides where the gradient passes."""

    @staticmethod
    def forward(ctx, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y, v)
        return y @ v

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, v = ctx.saved_tensors
        return torch.where(y > 0, grads[0] @ v.t(), 0.0), y.t() @ grads[0]


@pytest.mark.parametrize("function, need", [(torch.relu, "operand+mask"), (torch.sin, "operand")], ids=["relu", "sin"])
def test_a_zero_pattern_is_one_only_of_what_is_never_negative(function, need: Need) -> None:
    """A zero-preserving codec is for non-negative values; of others the predicate is saved."""
    pair = capture(lambda x, w, v: Gated.apply(function(x @ w), v), matrices(), "default")  # type: ignore[no-untyped-call]
    assert needs(pair)[name_of(pair, function.__name__)] == need


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_operands(dtype: torch.dtype) -> None:
    heads = tuple(torch.randn(2, 4, 16, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    pair = capture(lambda q, k, v: F.scaled_dot_product_attention(q * 2, k * 2, v * 2, is_causal=True), heads)
    found = needs(pair)
    assert sorted(found.values()) == ["attention"] * 4 + ["statistic"], found


STATISTICS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "mean": (lambda x: x.mean(1), True),
    "root of a mean": (lambda x: (x.mean(1) + 1).sqrt(), True),
    "sum of two": (lambda x: x.view(16, 8, 2).sum(2), False),
    "sum of eight": (lambda x: x.view(16, 2, 8).sum(2), True),
    "pointwise": (lambda x: x.sin(), False),
    "log probabilities": (lambda x: x.log_softmax(1), True),
    "variance": (lambda x: torch.var_mean(x, 1)[0], True),
    "product": (lambda x: x @ x, False),
    "with a full tensor": (lambda x: x.mean(1, keepdim=True) * x, False),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_made_of_reductions(name: str) -> None:
    function, expected = STATISTICS[name]
    pair = capture(function, matrices(1))
    assert is_statistic(outputs(pair.fw)[0]) == expected


def test_integers_and_complex_numbers_are_for_no_lossy_class() -> None:
    x = torch.randn(16, 16, dtype=torch.complex64, requires_grad=True)
    assert set(needs(capture(lambda x: (x * 2) @ (x * 3), (x,))).values()) == {"other"}
    y, index = torch.randn(8, 16, requires_grad=True), torch.randint(0, 8, (20,))
    found = needs(capture(lambda y, index: y.sin()[index * 1], (y, index), "default"))
    assert "other" in found.values()


@pytest.mark.parametrize("periodic", [torch.sin, torch.cos])
def test_an_argument_of_a_sine_is_like_logits(periodic: Callable[[torch.Tensor], torch.Tensor]) -> None:
    pair = capture(lambda a, b, c: (periodic(a @ b) * c).sum(), matrices())
    assert needs(pair)[name_of(pair, "mm")] == "logits"


def test_random_fourier_features_of_learned_values_keep_their_gradient() -> None:
    def gradient(backend: str, options: dict[str, object] | None) -> torch.Tensor:
        torch._dynamo.reset()
        torch.manual_seed(0)
        embed, frequencies, out = torch.nn.Linear(8, 4), torch.randn(4, 64) * 8, torch.nn.Linear(128, 3)
        x = torch.randn(256, 8)

        def loss(x: torch.Tensor) -> torch.Tensor:
            angle = embed(x) @ frequencies
            return out(torch.cat([angle.sin(), angle.cos()], -1)).square().mean()

        torch.compile(loss, backend=backend, options=options)(x).backward()
        return embed.weight.grad

    plain = gradient("aot_eager", None)
    ours = gradient("actcomp", {"inner": "aot_eager", "min_bytes": 0})
    assert (plain - ours).norm() < 0.15 * plain.norm()
