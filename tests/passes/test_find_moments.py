"""Losses on variances in windows: near agreement the gradient is a small difference of the images compared."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import explain, ledger

Loss = Callable[[Tensor, Tensor], Tensor]
FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}


def blurred(x: Tensor) -> Tensor:
    weights = torch.exp(-((torch.arange(7.0) - 3) ** 2) / 4)
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 7, 7).contiguous()
    return F.conv2d(x, kernel, groups=x.shape[1])


def pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 7, 1)


def similarity(x: Tensor, y: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my * my, mean(x * y) - mx * my
    return (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))


def at_once(x: Tensor, y: Tensor) -> Tensor:
    """All means by one convolution, as libraries do."""
    mx, my, xx, yy, xy = blurred(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    num = (2 * mx * my + 1e-4) * (2 * (xy - mx * my) + 9e-4)
    return num / ((mx.square() + my.square() + 1e-4) * (xx - mx.square() + yy - my.square() + 9e-4))


def correlation(x: Tensor, y: Tensor) -> Tensor:
    mx, my = pooled(x), pooled(y)
    cross = pooled(x * y) - mx * my
    return cross**2 / ((pooled(x * x) - mx**2) * (pooled(y * y) - my**2) + 1e-5)


MOMENTS: dict[str, Loss] = {
    "ssim": lambda x, y: 1 - similarity(x, y, blurred).mean(),
    "ssim, pooled": lambda x, y: 1 - similarity(x, y, pooled).mean(),
    "ssim at once": lambda x, y: 1 - at_once(x, y).mean(),
    "correlation": lambda x, y: 1 - correlation(x, y).mean(),
}
NOT_MOMENTS: dict[str, Loss] = {
    "gated": lambda x, y: (pooled(x.tanh() * x.sigmoid()) - pooled(y).square()).square().mean(),
    "power": lambda x, y: pooled(x * x).sqrt().mean() + pooled(x).square().mean(),
}


class Restoration(nn.Module):
    """Adds a learned correction to images."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.first, self.last, self.loss = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), loss

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(x + 0.02 * self.last(torch.tanh(self.first(x))), target)


def gradient(loss: Loss, backend: str, options: dict[str, object] | None = None) -> Tensor:
    """The gradient where images are some per cent off."""
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    model, target = Restoration(loss), torch.rand(2, 3, 20, 20)
    torch.compile(model, backend=backend, options=options)(target + 0.02 * torch.randn(2, 3, 20, 20), target).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MOMENTS)
def test_similar_images_keep_their_gradient(name: str) -> None:
    plain = gradient(MOMENTS[name], "aot_eager")
    assert (plain - gradient(MOMENTS[name], "actcomp", FAST)).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize("name", MOMENTS)
def test_images_stay_exact_as_inductor_takes_their_loss_apart(name: str) -> None:
    image = torch.rand(2, 3, 20, 20)
    (graph,) = explain(lambda: (Restoration(MOMENTS[name]), (image, image)), (), {"min_bytes": 0}).graphs
    assert any(decision.codec == "keep" and "windows" in decision.reason for decision in graph.decisions)


@pytest.mark.parametrize("name", NOT_MOMENTS)
def test_other_values_stay_lossy(name: str) -> None:
    gradient(NOT_MOMENTS[name], "actcomp", FAST)
    reasons = [decision.reason for graph in ledger.reports() for decision in graph.decisions]
    assert not any("windows" in reason for reason in reasons)
