"""Parameters and buffers that a forward changes: the backward computes nothing again from what they have become."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

EXACT: dict[str, Any] = {"inner": "aot_eager", "min_bytes": 0, "lossy": False}


def data(net: "Net", x: Tensor) -> Tensor:
    net.weight.data.mul_(1.5)
    hidden = torch.tanh(x @ net.weight)
    net.weight.data.mul_(1.5)
    return torch.tanh(hidden @ net.weight)


def no_grad(net: "Net", x: Tensor) -> Tensor:
    with torch.no_grad():
        net.weight.mul_(1.5)
    return torch.tanh(torch.tanh(x @ net.weight) @ net.weight)


def used_before(net: "Net", x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ (net.weight.abs() * 2))
    net.weight.data.mul_(1.5)
    return torch.tanh(hidden @ net.weight)


def buffer(net: "Net", x: Tensor) -> Tensor:
    hidden = torch.tanh((x @ net.weight) @ (net.buffer.abs() * 2))
    net.buffer.mul_(0.9)
    return torch.tanh(hidden @ (net.buffer * 2))


def view(net: "Net", x: Tensor) -> Tensor:
    hidden = torch.tanh((x @ net.weight) @ net.buffer.t().neg())
    net.buffer.copy_(hidden.detach()[:8])
    return hidden * 2


def scale(net: "Net", x: Tensor) -> Tensor:
    """PyTorch's own gradient is wrong here."""
    scaled = torch.tanh(x @ net.weight) * (net.buffer[0].abs() + 1)
    net.buffer.mul_(0.5)
    return torch.tanh(scaled)


FORWARDS = [data, no_grad, used_before, buffer, view, scale]


class Net(nn.Module):
    """A weight and a buffer, which `forward_of` reads and changes."""

    def __init__(self, forward_of: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("buffer", torch.randn(8, 8))
        self.last = nn.Parameter(torch.randn(8, 8))
        self.forward_of = forward_of

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, 8] to the same shape."""
        y = self.forward_of(self, x)
        for _ in range(3):
            y = torch.tanh(y) @ self.last
        return y


def step(forward_of: Callable[[Net, Tensor], Tensor], options: dict[str, Any] | None) -> tuple[Tensor, Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, x = Net(forward_of), torch.randn(64, 8)
    call = net if options is None else torch.compile(net, backend="actcomp", options=options)
    call(x).sum().backward()
    assert net.weight.grad is not None
    return net.weight.grad, net.buffer


@pytest.mark.parametrize("budget", [None, "90%"])
@pytest.mark.parametrize("forward_of", FORWARDS)
def test_gradients_are_eager_ones(forward_of: Callable[[Net, Tensor], Tensor], budget: str | None) -> None:
    exact, changed = step(forward_of, None)
    ours, ours_changed = step(forward_of, {**EXACT, **({"budget": budget} if budget else {})})
    assert torch.allclose(ours, exact, rtol=1e-5, atol=1e-6) and torch.equal(ours_changed, changed)


@pytest.mark.slow
@pytest.mark.parametrize("forward_of", FORWARDS)
def test_gradients_are_eager_ones_under_inductor(forward_of: Callable[[Net, Tensor], Tensor]) -> None:
    exact, changed = step(forward_of, None)
    ours, ours_changed = step(forward_of, {"min_bytes": 0, "lossy": False})
    assert torch.allclose(ours, exact, rtol=1e-4, atol=1e-5) and torch.allclose(ours_changed, changed)


def test_a_batch_norm_that_updates_statistics_may_be_computed_again() -> None:
    """It reads them to update them alone."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GELU()]
    net, x = nn.Sequential(*layers, nn.Conv2d(8, 8, 3)), torch.randn(4, 4, 16, 16)
    parameters = list(net.parameters())
    exact = torch.autograd.grad(net(x).square().sum(), parameters)
    compiled = torch.compile(net, backend="actcomp", options={"inner": "aot_eager", "min_bytes": 0, "budget": "60%"})
    ours = torch.autograd.grad(compiled(x).square().sum(), parameters)
    error = sum(float((a - b).square().sum()) for a, b in zip(ours, exact, strict=True))
    assert error < 0.1**2 * sum(float(b.square().sum()) for b in exact)
