"""Near a regression's optimum the gradient is a small difference of large values: lossy codes must not swallow it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import ledger

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "mse": F.mse_loss,
    "smooth_l1": lambda p, t: F.smooth_l1_loss(p, t, beta=0.02),
    "huber": lambda p, t: F.huber_loss(p, t, delta=0.02),
    "relative": lambda p, t: ((p - t) / (t.abs() + 1)).square().mean(),
    "of_sums": lambda p, t: F.mse_loss(t + p * 0.01, t + 0.001),
    "of_probabilities": lambda p, t: (p.softmax(-1) - t.softmax(-1)).square().sum(-1).mean(),
    "to_its_own": lambda p, t: (p.softmax(-1) - (p + t).detach().softmax(-1)).square().sum(-1).mean(),
    "other_readers": lambda p, t: F.mse_loss(p, t) + 1e-4 * (p[:, 1:] - p[:, :-1]).square().mean(),
}


class Regression(nn.Module):
    """Predicts values of up to 10 or so."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.hidden, self.out, self.loss = nn.Linear(24, 44), nn.Linear(44, 100), loss

    def predict(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x))) * 5

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.predict(x), target)


def gradient(loss: Loss, backend: str, options: dict[str, object] | None = None) -> Tensor:
    """The gradient where predictions are 1 % off."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Regression(loss), torch.randn(64, 24)
    with torch.no_grad():
        target = model.predict(x) + 0.01 * torch.randn(64, 100)
    torch.compile(model, backend=backend, options=options)(x, target).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", LOSSES)
def test_small_residuals_keep_their_gradient(name: str) -> None:
    plain = gradient(LOSSES[name], "aot_eager")
    ours = gradient(LOSSES[name], "actcomp", {"inner": "aot_eager", "min_bytes": 0})
    assert (plain - ours).norm() < 0.2 * plain.norm()


@pytest.mark.parametrize("name", ["mse", "huber", "relative"])
def test_the_difference_replaces_the_prediction(name: str) -> None:
    ledger.clear()
    gradient(LOSSES[name], "actcomp", {"inner": "aot_eager", "min_bytes": 0})
    encoded = [d.tensor for graph in ledger.reports() for d in graph.decisions if d.codec == "affine"]
    assert [tensor.shape for tensor in encoded if tensor.shape[-1] == 100] == [(64, 100)]


def test_exact_codecs_leave_the_loss_to_its_operator() -> None:
    options = {"inner": "aot_eager", "min_bytes": 0, "lossy": False}
    assert torch.equal(gradient(F.mse_loss, "aot_eager"), gradient(F.mse_loss, "actcomp", options))


def test_a_small_gap_between_gates_is_not_saved_besides() -> None:
    """`h - n` of a recurrent step: both are saved for other readers, and neither is given."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            h, n = torch.tanh(self.a(x)), torch.tanh(self.b(x))
            return self.c(n + torch.sigmoid(self.a(h)) * (h - n)).sum()

    torch._dynamo.reset()
    ledger.clear()
    options = {"inner": "aot_eager", "min_bytes": 0}
    torch.compile(Step(), backend="actcomp", options=options)(torch.randn(64, 32)).backward()
    assert not [d for graph in ledger.reports() for d in graph.decisions if d.tensor.name.startswith("actcomp_")]


@pytest.mark.parametrize("dynamic", [False, True])
def test_more_differences_do_not_replace_fewer_values(dynamic: bool) -> None:
    """They are more than the values of which they are taken, behind a symbolic size too."""

    def apart(p: Tensor, t: Tensor) -> Tensor:
        return torch.stack([F.smooth_l1_loss(p, p * factor) for factor in (0.9, 1.1, 1.2)]).sum()

    torch._dynamo.reset()
    ledger.clear()
    options = {"inner": "aot_eager", "min_bytes": 0}
    compiled = torch.compile(Regression(apart), backend="actcomp", options=options, dynamic=dynamic)
    compiled(torch.randn(64, 24), torch.randn(64, 100)).backward()
    (plan,) = ledger.reports()
    assert not [d.tensor.name for d in plan.decisions if d.tensor.name.startswith("actcomp_")]
