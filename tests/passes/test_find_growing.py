"""Errors that grow in the backward, against gradients of the uncompressed program."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.testing_graphs import Partition, capture, distance, run

TIME = 32
GROWING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "decays and their inverse": lambda x: (
        (total := F.logsigmoid(x).cumsum(0)).exp() * (x.tanh() * (-total).exp()).cumsum(0)
    ),
    "moved and scaled": lambda x: (
        (total := (x.sigmoid() * -2).cumsum(0).unsqueeze(0)).exp() * (x * (total * -1.5).exp2()).cumsum(1)
    ),
    "divided by": lambda x: (
        (decay := F.logsigmoid(x).cumsum(0).exp()) * (x.tanh() / decay.unsqueeze(0)).squeeze(0).cumsum(0)
    ),
    "a reciprocal": lambda x: (decay := F.logsigmoid(x).cumsum(0).exp()) * (x.tanh() * decay.reciprocal()).cumsum(0),
    "powers of two": lambda x: 2.0 ** (total := F.logsigmoid(x).cumsum(0)) * (x.tanh() * 2.0 ** (-total)).cumsum(0),
    "a running product": lambda x: (decay := x.sigmoid().cumprod(0)) * (x.tanh() / decay).cumsum(0),
    "pseudo-inverse": lambda x: torch.linalg.pinv(x) * x.sin(),
    "a product of many": lambda x: x.prod(1),
    "eigenvectors": lambda x: torch.linalg.eigh(x + x.mT)[1] ** 4,
    "of eigenvectors": lambda x: (vectors := torch.linalg.eigh(x + x.mT)[1].tanh()) @ vectors.mT,
    "singular vectors": lambda x: torch.linalg.svd(x)[0].square(),
    "orthogonal part": lambda x: torch.linalg.qr(x)[0].sin(),
    "reflections": lambda x: torch.linalg.householder_product(x, x[0].sigmoid()),
}


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("partition", ["bases", "default"])
def test_what_would_grow_is_kept(name: str, partition: Partition) -> None:
    x = torch.randn(TIME, TIME, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pair = capture(lambda x: GROWING[name](x * 1.25), (x,), partition)
    before = run(pair)
    pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64, bits=8))
    assert distance(run(pair).gradients, before.gradients) < 0.02


@pytest.mark.parametrize("function", [lambda x: x.cumsum(0).sin(), lambda x: x.tanh().exp() * x.cumsum(0)])
def test_running_sums_and_exponentials_by_themselves_are_compressed(function) -> None:
    pair = capture(lambda x: function(x * 1.25), (torch.randn(TIME, TIME, requires_grad=True),), "default")
    plan = pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64)).plan
    assert any(decision.codec == "affine" for decision in plan.decisions)
    assert not any("running sum" in decision.reason for decision in plan.decisions)
