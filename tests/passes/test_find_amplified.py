"""Errors that a later step multiplies without limit, against the executed error of the gradient."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_amplified import find_amplified
from fxcompress.passes.find_saved import find_saved
from fxcompress.testing_graphs import Pair, backward_inputs, capture, distance, run, same
from fxcompress.testing_programs import Program, programs

Function = Callable[[torch.Tensor], torch.Tensor]


def distances(x: torch.Tensor) -> torch.Tensor:
    points = x.view(x.shape[0], -1, 4)
    return 1 / ((points[..., 1:] - points[..., :-1]).norm(dim=-1) + 1e-6)


NEAR_ZERO: dict[str, Function] = {
    "copysign": lambda x: torch.copysign(x, x.roll(1)),
    "scatter product": lambda x: torch.ones(32, 32).scatter_reduce(
        1, torch.arange(64).expand(32, 64) // 2, x, "prod", include_self=True
    ),
    "indexed product": lambda x: torch.ones(16, 64).index_reduce(0, torch.arange(x.shape[0]) // 2, x, "prod"),
    "cumulative product": lambda x: x[:, :4].cumprod(1),
    "distances": distances,
    "log-cumulative-sum-exp": lambda x: (x * 3).logcumsumexp(1),
}
SHARED: dict[str, Function] = {
    "root mean square": lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6),
    "norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-6),
    "normalize": lambda x: F.normalize(x, dim=1),
    "largest": lambda x: x / x.abs().amax(1, keepdim=True).clamp_min(1e-5),
    "softmax by hand": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "gate": lambda x: x * torch.sigmoid(x.sin()),
    "temperature": lambda x: x / (x.mean() + 3),
}


def captured(function: Function) -> Pair:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(rows, 64, generator=generator).requires_grad_() for rows in (32, 64))
    return capture(lambda x, w: function(x @ w * 0.1) * 1.5, (x, w))


def amplified(pair: Pair) -> dict[str, str]:
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    sources = {p.bw for p in pairs if p.val.dtype.is_floating_point and p.fw.op != "placeholder"}
    return find_amplified(pair.bw, sources, gradient_nodes(pair.bw, {p.bw for p in pairs}))


def worst_amplification(pair: Pair, names: set[str]) -> float:
    """Relative error of the gradient when 1 % of its largest magnitude is added to every saved value in `names`."""
    ran = run(pair)
    pairs = {p.position - pair.num_fwd_outputs: p.bw.name for p in find_saved(pair.fw, pair.bw)}
    values = list(ran.saved)
    for at, name in pairs.items():
        if name in names:
            values[at] = values[at] + 0.01 * values[at].abs().max() * torch.cos(torch.arange(values[at].numel())).view(
                values[at].shape
            )
    wrong = torch.fx.Interpreter(pair.bw).run(*backward_inputs(values, pair.tangents))
    return distance([grad.detach() for grad in wrong], ran.gradients)


@pytest.mark.parametrize("name", NEAR_ZERO)
def test_gradients_at_the_default_widths_are_near(name: str) -> None:
    pair = captured(NEAR_ZERO[name])
    before = run(pair)
    pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64))
    after = run(pair)
    assert same(after.outputs, before.outputs)
    assert distance(after.gradients, before.gradients) < 0.15


@pytest.mark.parametrize("name", ["scatter product", "distances"])
def test_what_is_found_is_what_execution_amplifies(name: str) -> None:
    pair = captured(NEAR_ZERO[name])
    found = amplified(pair)
    assert found and worst_amplification(pair, set(found)) > 0.05


@pytest.mark.parametrize("name", SHARED)
def test_what_many_elements_share_amplifies_nothing(name: str) -> None:
    pair = captured(SHARED[name])
    assert amplified(pair) == {}
    before = run(pair)
    plan = pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64, bits=8)).plan
    assert any(decision.codec == "affine" for decision in plan.decisions)
    assert distance(run(pair).gradients, before.gradients) < 0.05


def test_reasons_name_the_step() -> None:
    for reason in amplified(captured(distances)).values():
        assert reason.startswith("its error is divided by values that may be near zero (div")
    reasons = amplified(captured(lambda x: (x.tanh() * 3).logcumsumexp(1))).values()
    assert any(reason.startswith("its error is exponentiated with a gradient") for reason in reasons)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(programs())
def test_ordinary_programs_have_none_and_nothing_is_edited(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    text = str(pair.bw.graph)
    assert amplified(pair) == amplified(pair) == {} and str(pair.bw.graph) == text
