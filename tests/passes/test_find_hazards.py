"""Poles, jumps and unknown operators, against what executed backwards give for values that decode to zero."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_hazards import find_hazards, is_nonnegative, is_positive, is_steady
from fxcompress.passes.find_saved import find_saved, outputs
from fxcompress.testing_graphs import Pair, backward_inputs, capture, node_values, run
from fxcompress.testing_programs import Program, programs

Function = Callable[[torch.Tensor], torch.Tensor]
POLES: dict[str, Function] = {
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "divide": lambda x: x.cos() / x,
    "root": lambda x: x**0.25,
    "negative power": lambda x: x**-2,
    "log with eps": lambda x: (x.abs() + 1e-7).log(),
    "log of clamped": lambda x: x.clamp_min(1e-6).log(),
    "rsqrt with eps": lambda x: (x.square() + 1e-9).rsqrt(),
}
RESULT_SAVED = ("rsqrt", "reciprocal", "rsqrt with eps")
"""Their derivatives are powers of their results, which have no pole."""
HARMLESS: dict[str, Function] = {
    "exp": torch.exp,
    "sin": torch.sin,
    "square": torch.square,
    "cube": lambda x: x**3,
    "gelu": F.gelu,
    "softsign": F.softsign,
    "sigmoid by hand": lambda x: 1 / (1 + torch.exp(-x).detach() * x.sigmoid()),
    "variance": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt(),
    "log of one more": lambda x: (x.square() + 1).log(),
}
JUMPS: dict[str, Function] = {
    "acos": lambda x: torch.acos(x / 4),
    "lgamma": torch.lgamma,
    "atan2": lambda x: torch.atan2(x, x + 1),
    "solve": lambda x: torch.linalg.solve(x + 9 * torch.eye(16), x),
    "determinant": lambda x: torch.linalg.slogdet(x + 9 * torch.eye(16))[1],
    "elu": lambda x: F.elu(x, 2.0),
}


def captured(function: Function) -> Pair:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(16, 16, generator=generator) + 0.5).requires_grad_()
    return capture(lambda x: function(x * 1.25), (x,), "min_cut")


def sources(pair: Pair) -> set[fx.Node]:
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    return {p.bw for p in pairs if p.val.dtype.is_floating_point}


def hazards(pair: Pair) -> dict[str, str]:
    return find_hazards(pair.bw, sources(pair), gradient_nodes(pair.bw, sources(pair)))


def growth(pair: Pair, name: str) -> float:
    """How much larger the gradient becomes when one element of saved `name` decodes to almost zero."""
    ran = run(pair)
    positions = {p.bw.name: p.position - pair.num_fwd_outputs for p in find_saved(pair.fw, pair.bw)}
    values = [value.clone() for value in ran.saved]
    values[positions[name]].view(-1)[7] = 2e-6
    wrong = fx.Interpreter(pair.bw).run(*backward_inputs(values, pair.tangents))
    norms = [torch.stack([g.detach().norm() for g in gs if g is not None]).norm() for gs in (wrong, ran.gradients)]
    return float(norms[0] / norms[1])


@pytest.mark.parametrize("name", POLES)
def test_poles_are_found_where_execution_diverges(name: str) -> None:
    pair = captured(POLES[name])
    found = hazards(pair)
    diverging = {node.name for node in sources(pair) if not growth(pair, node.name) < 20}
    assert diverging <= set(found), (diverging, found)
    assert diverging or name in RESULT_SAVED


@pytest.mark.parametrize("name", HARMLESS)
def test_what_stays_away_from_poles_is_harmless(name: str) -> None:
    pair = captured(HARMLESS[name])
    wrong = {node.name for node in sources(pair) if not growth(pair, node.name) < 20}
    found = {name for name in hazards(pair) if name not in statistics(pair)}
    assert wrong <= statistics(pair) and found == set()


def statistics(pair: Pair) -> set[str]:
    """Saved values of an eighth of the size, which are kept anyway."""
    return {node.name for node in sources(pair) if node.meta["val"].numel() <= 32}


@pytest.mark.parametrize("name", JUMPS)
def test_jumping_diverging_and_inverting_operators_are_found(name: str) -> None:
    (reason, *_) = hazards(captured(JUMPS[name])).values()
    assert "would jump or diverge" in reason or "would diverge" in reason


def test_only_sources_are_named_and_nothing_is_edited() -> None:
    pair = captured(POLES["log"])
    text = str(pair.bw.graph)
    assert find_hazards(pair.bw, set(), gradient_nodes(pair.bw, set())) == {}
    assert set(hazards(pair)) <= {node.name for node in sources(pair)}
    assert hazards(pair) == hazards(pair) and str(pair.bw.graph) == text


@settings(deadline=None, max_examples=8, derandomize=True)
@given(programs())
def test_ordinary_programs_have_none(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    found = {name for name in hazards(pair) if name not in statistics(pair)}
    assert found == set()


TERMS: dict[str, Callable[..., torch.Tensor]] = {
    "exp": lambda a, b: a.exp(),
    "abs": lambda a, b: a.abs(),
    "square": lambda a, b: a * a,
    "relu": lambda a, b: a.relu(),
    "root": lambda a, b: a.abs().sqrt(),
    "clamp": lambda a, b: a.clamp_min(0.75),
    "small clamp": lambda a, b: a.clamp_min(1e-4),
    "add": torch.add,
    "mul": torch.mul,
    "divide": lambda a, b: a / (b.abs() + 1),
    "more": lambda a, b: a + 1,
    "eps": lambda a, b: a + 1e-5,
    "mean": lambda a, b: a.mean(1, keepdim=True).expand(a.shape) + 0.0,
    "variance": lambda a, b: a.var(1, keepdim=True).expand(a.shape) + 1e-6,
    "move": lambda a, b: a.t().flip(0).t(),
    "cat": lambda a, b: torch.cat([a, b])[: a.shape[0]],
    "negative": lambda a, b: -a,
    "sine": lambda a, b: a.sin(),
}


TERM = st.tuples(st.sampled_from(sorted(TERMS)), st.integers(0, 9), st.integers(0, 9))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.lists(TERM, min_size=1, max_size=6))
def test_signs_and_distances_from_zero_hold_of_executed_values(steps: list[tuple[str, int, int]]) -> None:
    """What is called positive or non-negative is so for every input, zeros and extremes of a code among them."""

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        values = [x * 1]
        for name, left, right in steps:
            values.append(TERMS[name](values[left % len(values)], values[right % len(values)]))
        return [value * 1 for value in values[1:]]

    pair = capture(function, (torch.randn(16, 16, requires_grad=True),), "default")
    tried = [torch.randn(16, 16), torch.zeros(16, 16), -torch.rand(16, 16), torch.randn(16, 16) * 1e-3]
    for x in tried:
        for node, value in node_values(pair.fw, (x,)).items():
            if node.op == "call_function" and isinstance(value, torch.Tensor):
                assert not is_nonnegative(node) or bool((value >= 0).all()), node
                assert not is_positive(node) or bool((value > 0).all()), node


@pytest.mark.parametrize(
    "function, steady",
    [
        (lambda x: x.square().mean(1), True),
        (lambda x: x.norm(dim=1), True),
        (lambda x: x.view(16, 4, 4).norm(dim=2), False),
        (lambda x: x.abs(), False),
        (lambda x: x.exp(), True),
        (lambda x: x.abs().amin(1), False),
        (lambda x: (x.square().sum(1) + 1e-6).sqrt(), True),
        (lambda x: x.square().sum(1, keepdim=True) * x.abs(), False),
    ],
)
def test_one_element_cannot_bring_near_zero_what_many_make(function: Function, steady: bool) -> None:
    pair = capture(function, (torch.randn(16, 16, requires_grad=True),))
    node = outputs(pair.fw)[0]
    while "detach" in str(node.target):
        node = node.all_input_nodes[0]
    assert is_steady(node) == steady
