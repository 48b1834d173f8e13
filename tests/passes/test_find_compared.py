"""Losses on pairs of points: near their optimum the gradient is a small difference of large values."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import ledger

Loss = Callable[[Tensor, Tensor], Tensor]
FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}


def nearest(distances: Tensor) -> Tensor:
    return distances.min(1).values.mean() + distances.min(0).values.mean()


def kernel(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-(x[:, None] - y[None]).square().sum(-1) / 2).mean()


COMPARED: dict[str, Loss] = {
    "chamfer": lambda x, y: nearest((x[:, None] - y[None]).square().sum(-1)),
    "cdist": lambda x, y: nearest(torch.cdist(x, y)),
    "few": lambda x, y: nearest(torch.cdist(x[:20], y)),
    "expanded": lambda x, y: nearest((x * x).sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T),
    "mmd": lambda x, y: kernel(x, x) + kernel(y, y) - 2 * kernel(x, y),
}
NOT_COMPARED: dict[str, Loss] = {
    "penalty": lambda x, y: (x @ y.T).sigmoid().mean() + 1e-3 * x.square().sum(),
    "scores": lambda x, y: F.softmax(x @ y.T, -1).square().mean(),
    "centered": lambda x, y: ((x - x.mean(0)) * y).tanh().mean(),
    "cast": lambda x, y: ((x.bfloat16() - x.mean(0)).square() * y).mean(),
}


class Points(nn.Module):
    """Moves 128 points in space."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.net, self.loss = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 3)), loss

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.net(x) * 5, target)


def gradient(loss: Loss, backend: str, options: dict[str, object] | None = None) -> Tensor:
    """The gradient where points are 1 % from their targets."""
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    model, x = Points(loss), torch.randn(128, 16)
    with torch.no_grad():
        target = (model.net(x) * 5 + 0.01 * torch.randn(128, 3))[torch.randperm(128)]
    torch.compile(model, backend=backend, options=options)(x, target).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", COMPARED)
def test_close_pairs_keep_their_gradient(name: str) -> None:
    plain = gradient(COMPARED[name], "aot_eager")
    assert (plain - gradient(COMPARED[name], "actcomp", FAST)).norm() < 0.15 * plain.norm()


@pytest.mark.parametrize("name", NOT_COMPARED)
def test_other_values_stay_lossy(name: str) -> None:
    gradient(NOT_COMPARED[name], "actcomp", FAST)
    reasons = [decision.reason for graph in ledger.reports() for decision in graph.decisions]
    assert not any("pair" in reason for reason in reasons)
