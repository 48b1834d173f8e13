"""Predicates: moved to the forward without changing a bit, and never read from a lossy value afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from fxcompress import pipeline
from fxcompress.facts import CALLER_HELD
from fxcompress.options import Options
from fxcompress.passes.demand import COMPARES_ZERO
from fxcompress.passes.find_saved import find_saved, placeholders
from fxcompress.passes.ops import JUMPS, PREDICATES, op_name
from fxcompress.passes.save_predicates import expose_predicates, mask_only
from fxcompress.plan import KEEP, Decision, GraphPlan
from fxcompress.testing_graphs import Pair, capture, run, same

Unary = Callable[[torch.Tensor], torch.Tensor]
ASKING: dict[str, Unary] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "hardsigmoid": F.hardsigmoid,
    "threshold": lambda x: F.threshold(x, 0.5, -1.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_tensors": lambda x: x.clamp(-x.detach().abs() / 2, torch.ones_like(x) / 2),
    "abs": torch.abs,
    "amax": lambda x: x - x.amax(1, keepdim=True),
    "max": lambda x: x - x.max(1, keepdim=True).values,
    "chain": lambda x: torch.where((x > 0.3) & ~(x > 0.9) | (x.abs() < 0.1), x, x * x),
    "dropout": lambda x: torch.where(torch.cos(x * 9) > 0.4, x / 0.7, 0.0),
    "maximum": lambda x: torch.maximum(x, x.sin()),
    "twice": lambda x: F.relu(F.relu(x) - 0.25) * F.relu(x),
}
SPECIAL = [float("nan"), 0.0, -0.0, float("inf"), -float("inf"), 0.5, -0.5, 0.25, 3.0, -3.0, 6.0, 0.1]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, first, second = (
        torch.randn(32, 32, generator=generator, dtype=torch.float64) * scale for scale in (1, 0.2, 0.2)
    )
    return tuple(value.to(dtype).requires_grad_() for value in (x, first, second))


def network(activation: Unary) -> Callable[..., torch.Tensor]:
    def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (activation(x @ first) @ second).sin()

    return function


def compressed(pair: Pair, **options: object) -> GraphPlan:
    return pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64, **options)).plan  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_codecs_change_no_bit(name: str, dtype: torch.dtype) -> None:
    pair = capture(network(ASKING[name]), inputs(dtype))
    before = run(pair)
    compressed(pair, lossy=False)
    after = run(pair, compiled=True)
    assert same(after.outputs, before.outputs) and same(after.gradients, before.gradients)


@pytest.mark.parametrize("name", [name for name in ASKING if name != "hardsigmoid"])
def test_special_values_change_no_bit(name: str) -> None:
    """Directly on an activation's argument, with NaN, infinities, both zeros and the thresholds themselves."""
    special = SPECIAL[1:] if name in ("relu6", "hardtanh") else SPECIAL
    x = torch.tensor(special * 32).reshape(-1, 32).requires_grad_()
    pair = capture(lambda x: ASKING[name](x * 1), (x,))
    before = run(pair)
    compressed(pair, lossy=False)
    assert same(run(pair).gradients, before.gradients)


PASSING_NAN = (torch.ops.aten.threshold_backward.default, torch.ops.aten.leaky_relu_backward.default)
THRESHOLDS = [
    (torch.ops.aten.threshold_backward.default, (0.25,)),
    (torch.ops.aten.threshold_backward.default, (0,)),
    (torch.ops.aten.hardtanh_backward.default, (-0.75, 0.125)),
    (torch.ops.aten.hardtanh_backward.default, (0.0, 6.0)),
    (torch.ops.aten.leaky_relu_backward.default, (0.1, False)),
    (torch.ops.aten.hardsigmoid_backward.default, ()),
    (torch.ops.aten.hardshrink_backward.default, (0.25,)),
    (torch.ops.aten.softshrink_backward.default, (0.125,)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op, args", THRESHOLDS, ids=str)
def test_exposed_predicates_are_the_kernels(
    op: torch._ops.OpOverload, args: tuple[object, ...], dtype: torch.dtype
) -> None:
    """Every bit, for thresholds that the dtype holds exactly.

    NaN is left out where PyTorch's own CPU kernel answers differently in its vectorised and in its scalar part.
    """
    special = SPECIAL if op in PASSING_NAN else SPECIAL[1:]
    grid = torch.linspace(-1, 7, 8001).tolist()
    x = torch.tensor([*special, *(-value for value in special), *grid], dtype=dtype)
    gradient = torch.cos(torch.arange(x.numel())).to(dtype)
    graph = fx.Graph()
    nodes = [graph.placeholder("tangents_1"), graph.placeholder("x")]
    nodes.append(graph.call_function(op, (*nodes, *args)))  # type: ignore[arg-type]
    graph.output(nodes[-1])
    mode = FakeTensorMode()
    for node, value in zip(nodes, (gradient, x, gradient), strict=True):
        node.meta["val"] = mode.from_tensor(value)
    gm = fx.GraphModule(torch.nn.Module(), graph)
    assert expose_predicates(gm) == 1
    assert same([fx.Interpreter(gm).run(gradient, x)], [op(gradient, x, *args)])


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("bits", [1, 8])
def test_no_predicate_is_read_from_a_lossy_decode(name: str, bits: int) -> None:
    pair = capture(network(ASKING[name]), inputs())
    plan = compressed(pair, bits=bits, operand_bits=max(bits, 2))
    zeros = {d.tensor.name for d in plan.decisions if dict(d.params).get("zero_preserving")}
    lossy = [d for d in plan.decisions if d.codec in ("affine", "float8")]
    assert lossy
    payloads = {node for node in placeholders(pair.bw) if node.name.startswith("actcomp_") and node.name[8].isdigit()}
    exact = {f"actcomp_{i}_" for i, d in enumerate(encoded(plan)) if d.codec == "valueset"}
    tainted = {node for node in payloads if not node.name.startswith(tuple(exact) or " ")}
    tangents = {node for node in placeholders(pair.bw) if node.name.startswith("tangents")}
    for node in pair.bw.graph.nodes:
        if any(arg in tangents for arg in node.all_input_nodes):
            tangents.add(node)
        elif any(arg in tainted for arg in node.all_input_nodes) and node.op == "call_function":
            if op_name(node) in PREDICATES | JUMPS and not inside_codec(node):
                assert zeros and op_name(node) in COMPARES_ZERO and node.args[1:] == (0,), node.format_node()
            tainted.add(node)


def encoded(plan: GraphPlan) -> list[Decision]:
    return [d for d in plan.decisions if d.codec not in (KEEP, "shared")]


def inside_codec(node: fx.Node) -> bool:
    """Nodes of a decode carry our prefix."""
    return node.name.startswith("actcomp_")


def test_a_value_asked_only_for_predicates_is_not_saved() -> None:
    pair = capture(network(lambda x: torch.where(x > 0.3, x, 0.0)), inputs())
    plan = compressed(pair)
    kept = {d.tensor.name: d for d in plan.decisions if d.tensor.refusal not in CALLER_HELD}
    assert any(d.codec == "valueset" and dict(d.params)["count"] == 2 for d in kept.values())


class Halved(torch.autograd.Function):
    """Halves the gradient where x * beta is small, as the backward of softplus asks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, beta: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.beta = beta
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where(x * ctx.beta > 0.3, gradients[0], gradients[0] * 0.5), None


@pytest.mark.parametrize(("beta", "masks"), [(1, 1), (2, 2)])
def test_a_multiple_of_one_is_the_same_question(beta: float, masks: int) -> None:
    def activation(x: torch.Tensor) -> torch.Tensor:
        halved: torch.Tensor = Halved.apply(x, beta)  # type: ignore[no-untyped-call]
        return torch.where(x > 0.3, halved.sin(), 0.0)

    saved = [d for d in compressed(capture(network(activation), inputs())).decisions if d.codec == "valueset"]
    assert len(saved) == masks


def test_mask_only_finds_what_is_only_compared() -> None:
    graph = fx.Graph()
    x, tangent = graph.placeholder("x"), graph.placeholder("tangents_1")
    mask = graph.call_function(torch.ops.aten.gt.Scalar, (graph.call_function(torch.ops.aten.neg.default, (x,)), 0.5))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (tangent, mask)),))
    forward = fx.Graph()
    saved = forward.create_node("call_function", torch.ops.aten.sin.default, (forward.placeholder("p"),), name="x")
    forward.output((saved,))
    for node in (x, tangent, saved):
        node.meta["val"] = torch.zeros(4)
    bw, fw = fx.GraphModule(torch.nn.Module(), graph), fx.GraphModule(torch.nn.Module(), forward)
    assert mask_only(bw, find_saved(fw, bw, num_fwd_outputs=0)) == {x}


@pytest.mark.parametrize(
    "function", [lambda x, w: x @ w.abs(), lambda x, w: (x @ w.clamp(-1, 1)) * 2], ids=["abs", "clamp"]
)
def test_what_the_caller_holds_gets_no_mask(function: Callable[..., torch.Tensor]) -> None:
    """A mask of a parameter would cost bytes and free none."""
    pair = capture(function, inputs()[:2])
    before = run(pair)
    plan = compressed(pair, lossy=False)
    assert plan.saved_bytes_after <= plan.saved_bytes_before
    assert same(run(pair).gradients, before.gradients)


def test_sources_of_an_argmax_stay_exact() -> None:
    """A position that the backward finds itself: no mask can be saved for it, so the value must not become lossy."""

    def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return Best.apply(x @ first) @ second  # type: ignore[no-any-return, no-untyped-call]

    pair = capture(function, inputs())
    before = run(pair)
    plan = compressed(pair)
    after = run(pair)
    (kept,) = [d for d in plan.decisions if d.tensor.name == "mm"]
    assert kept.codec == KEEP and "argmax" in kept.reason
    assert same(after.outputs, before.outputs)


class Best(torch.autograd.Function):
    """Passes the gradient of each row's largest element, found in the backward."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x.sin()

    @staticmethod
    def backward(ctx: object, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        at = x.argmax(1, keepdim=True)
        return torch.zeros_like(x).scatter(1, at, grads[0].gather(1, at))
