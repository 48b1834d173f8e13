"""Unmodified models with chunked logits: as near to float64 as without, in bf16 and in fp32."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.models.zoo import ZOO
from bench.precision import without_dropout
from fxcompress import ledger

MODELS = ["gpt2", "llama", "t5", "bytegpt"]
Options = Mapping[str, Any]
Gradients = dict[str, Tensor]


def gradients(module: nn.Module, run: Callable[[], Tensor], scale: float = 1.0) -> tuple[Tensor, Gradients]:
    """Loss and gradients of one step whose loss is multiplied by `scale`."""
    module.zero_grad()
    torch.manual_seed(1)
    loss = run()
    (loss * scale).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def step(module: nn.Module, args: Any, kwargs: Any, options: Options | None, scale: float) -> tuple[Tensor, Gradients]:
    """One step under actcomp with options, or under plain Inductor."""
    torch._dynamo.reset()
    how: dict[str, Any] = {"backend": "inductor"} if options is None else {"backend": "actcomp", "options": options}
    run = torch.compile(module, **how)
    return gradients(module, lambda: run(*args, **kwargs), scale)


def distances(name: str, plain: Options | None, ours: Options, scale: float) -> dict[str, tuple[float, float]]:
    """Of the loss, of every gradient and of the whole one of a bf16 model: distance to float64 under `plain` and ours.

    Over the norm, but for the whole one.
    """
    module, args, kwargs = ZOO[name]()
    module = without_dropout(module).to(torch.bfloat16)
    wide = copy.deepcopy(module).double()
    loss, exact = gradients(wide, lambda: wide(*args, **kwargs), scale)
    exact["loss"] = loss
    found = []
    for options in (plain, {"lossy": False, "loss_chunks": 4, **ours}):
        loss, got = step(copy.deepcopy(module), args, kwargs, options, scale)
        got["loss"] = loss
        away = {key: float((got[key].double() - exact[key]).norm()) for key in exact}
        share = {key: distance / float(exact[key].norm()) for key, distance in away.items()}
        found.append({**share, "whole": math.hypot(*(away[key] for key in away if key != "loss"))})
    assert ledger.reports()[-1].loss.chunks == 4
    return {key: (found[0][key], found[1][key]) for key in found[0]}


ROUNDING_OF_A_LOSS = 2.0**-8


@pytest.mark.parametrize("scale, slack", [(1.0, 1.001), (1 / 3, 1.3)])
def test_a_bf16_model_is_as_near_to_float64(scale: float, slack: float) -> None:
    """A tangent that is no power of two rounds gradients of hidden states and of the weight once more."""
    found = distances("gpt2", {"inner": "aot_eager", "lossy": False, "loss_chunks": 0}, {"inner": "aot_eager"}, scale)
    for key, (plain, ours) in found.items():
        assert ours <= slack * plain, (key, plain, ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_bf16_models_are_as_near_to_float64_as_under_inductor(name: str) -> None:
    """The whole gradient; single ones within the noise of rounding in other kernels; a loss may be the next number."""
    found = distances(name, None, {}, 1.0)
    plain, ours = found.pop("loss")
    assert ours <= max(plain, ROUNDING_OF_A_LOSS)
    plain, ours = found["whole"]
    assert ours <= 1.02 * plain, (plain, ours)
    for key, (plain, ours) in found.items():
        assert ours <= 1.2 * plain, (key, plain, ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fp32_models_are_within_rounding_of_inductor(name: str) -> None:
    module, args, kwargs = ZOO[name]()
    loss, plain = step(module, args, kwargs, None, 1.0)
    ours_loss, ours = step(module, args, kwargs, {"lossy": False, "loss_chunks": 4}, 1.0)
    assert ledger.reports()[-1].loss.chunks == 4
    torch.testing.assert_close(ours_loss, loss, rtol=1e-6, atol=0)
    for key, gradient in plain.items():
        assert (ours[key] - gradient).norm() <= 1e-6 * whole(plain), key


def whole(found: Gradients) -> float:
    """The norm of the whole gradient."""
    return float(torch.cat([gradient.flatten() for gradient in found.values()]).norm())
