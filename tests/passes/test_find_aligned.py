"""Losses on the directions of rows: near agreement the gradient is a small difference of the rows compared."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import explain, ledger

Loss = Callable[[Tensor, Tensor], Tensor]
FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}


def centered(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


ALIGNED: dict[str, Loss] = {
    "cosine": lambda x, y: (1 - F.cosine_similarity(x, y)).mean(),
    "unit rows": lambda x, y: 2 - 2 * (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1).mean(),
    "correlation": lambda x, y: (1 - F.cosine_similarity(centered(x), centered(y))).mean(),
    "angle": lambda x, y: torch.acos((F.normalize(x) * F.normalize(y)).sum(-1).clamp(-1 + 1e-6, 1 - 1e-6)).mean(),
    "lengths apart": lambda x, y: (1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).mean(),
    "pixels": lambda x, y: (1 - F.cosine_similarity(x.view(64, 4, 24), y.view(64, 4, 24), dim=1)).mean(),
}
NOT_ALIGNED: dict[str, Loss] = {
    "contrastive": lambda x, y: F.cross_entropy(F.normalize(x) @ F.normalize(y).T / 0.1, torch.arange(64)),
    "gated sum": lambda x, y: (x.sigmoid() * x.sin()).sum(-1).square().mean(),
    "half a sum": lambda x, y: ((x.sigmoid() * x.sin()).sum(-1) + (x.sin() * 0.5).sum(-1)).square().mean(),
    "normalized": lambda x, y: (F.normalize(x) * y.cos()).tanh().mean(),
}


class Embedding(nn.Module):
    """Embeds 64 vectors in 96 dimensions."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.net, self.loss = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 96)), loss

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.net(x), target)


def gradient(loss: Loss, backend: str, options: dict[str, object] | None = None) -> Tensor:
    """The gradient where embeddings are a few per cent from their targets."""
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    model, x = Embedding(loss), torch.randn(64, 16)
    with torch.no_grad():
        target = model.net(x) + 0.01 * torch.randn(64, 96)
    torch.compile(model, backend=backend, options=options)(x, target).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ALIGNED)
def test_close_rows_keep_their_gradient(name: str) -> None:
    plain = gradient(ALIGNED[name], "aot_eager")
    assert (plain - gradient(ALIGNED[name], "actcomp", FAST)).norm() < 0.05 * plain.norm()


@pytest.mark.parametrize("name", ALIGNED)
def test_rows_stay_exact_as_inductor_takes_their_loss_apart(name: str) -> None:
    inputs = torch.rand(64, 16), torch.rand(64, 96)
    (graph,) = explain(lambda: (Embedding(ALIGNED[name]), inputs), (), {"min_bytes": 0}).graphs
    assert all(decision.codec == "keep" for decision in graph.decisions if decision.tensor.layer == "net.2")


@pytest.mark.parametrize("name", NOT_ALIGNED)
def test_other_values_stay_lossy(name: str) -> None:
    gradient(NOT_ALIGNED[name], "actcomp", FAST)
    reasons = [decision.reason for graph in ledger.reports() for decision in graph.decisions]
    assert not any("directions" in reason for reason in reasons)
