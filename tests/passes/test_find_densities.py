"""Arguments of log-sum-exps whose range has no bound: an error that is a share of it would be any factor."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress import ledger
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_densities import find_densities
from fxcompress.passes.find_saved import find_saved
from fxcompress.testing_graphs import capture

Loss = Callable[[Tensor, Tensor], Tensor]
FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}


def mixture(scores: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a mixture of eight normal distributions with deviations around e⁻³."""
    weight, mean, deviation = scores.chunk(3, 1)
    deviation = deviation * 3 - 3
    density = -((target - mean) * torch.exp(-deviation)).square() / 2 - deviation
    return -torch.logsumexp(weight.log_softmax(1) + density, 1).mean()


def paths(scores: Tensor, target: Tensor) -> Tensor:
    """Log-sum-exp of the scores of all ways through eight steps of three."""
    total = scores[:, :3] * 30
    for step in range(1, 8):
        total = torch.logsumexp(total[:, :, None] + target[:, None, None] * torch.eye(3), 1)
        total = total + scores[:, 3 * step : 3 * step + 3] * 30
    return torch.logsumexp(total, 1).mean()


def gradients(
    loss: Callable[[Tensor, Tensor], Tensor], backend: str, options: dict[str, object] | None = None
) -> Tensor:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 24)), torch.randn(128, 16)
    target = torch.randn(128, 1) if loss is mixture else torch.randn(128)
    torch.compile(lambda x, y: loss(net(x), y), backend=backend, options=options)(x, target).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", [mixture, paths])
def test_their_gradients_keep_to_the_width_of_operands(loss: Loss) -> None:
    plain, ours = gradients(loss, "aot_eager"), gradients(loss, "actcomp", FAST)
    assert (ours - plain).norm() < 0.03 * plain.norm()


@pytest.mark.slow
@pytest.mark.parametrize("loss", [mixture, paths])
def test_so_do_those_that_inductor_takes_apart(loss: Loss) -> None:
    plain, ours = gradients(loss, "inductor"), gradients(loss, "actcomp", {"min_bytes": 0})
    assert (ours - plain).norm() < 0.03 * plain.norm()


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (lambda x, w: torch.logsumexp(-((x @ w) ** 2), 1).sum(), True),
        (lambda x, w: torch.logsumexp((x @ w).exp(), 1).sum(), True),
        (lambda x, w: torch.logsumexp((x @ w).exp() @ w, 1).sum(), False),
        (lambda x, w: torch.logsumexp((x @ w) * w[0].exp().sum(), 1).sum(), False),
        (lambda x, w: torch.logsumexp(x @ w + x.square().mean(), 1).sum(), False),
        (lambda x, w: torch.logsumexp(30 * ((x @ w) / 30).tanh(), 1).sum(), False),
    ],
)
def test_what_a_product_or_a_bounded_function_made_is_none(function: Loss, exact: bool) -> None:
    x, w = torch.randn(80, 16), torch.randn(16, 16, requires_grad=True)
    pair = capture(function, (x, w), "default")
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    sources = {each.bw for each in pairs}
    found = find_densities(pair.bw, pairs, sources, gradient_nodes(pair.bw, sources))
    assert bool(found) is exact, found
