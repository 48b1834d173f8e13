"""Poles, jumps and unknown operators, against what executed backwards give for values that decode to zero."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import fx

from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_hazards import find_hazards
from fxcompress.passes.find_saved import find_saved
from fxcompress.testing_graphs import Pair, backward_inputs, capture, run
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
