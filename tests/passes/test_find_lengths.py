"""Embeddings compared by their angle: where they are close, the gradient is what is left of a much larger one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import ledger
from fxcompress.passes.find_lengths import has_length_taken
from fxcompress.testing_graphs import capture


def by_hand(x: Tensor, y: Tensor) -> Tensor:
    return (x / (x * x).sum(-1, keepdim=True).sqrt()) @ F.normalize(y, dim=-1).T


COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normalize": lambda x, y: F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T,
    "by hand": by_hand,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_close_embeddings_keep_their_gradient(name: str) -> None:
    def gradient(backend: str, options: dict[str, object] | None) -> Tensor:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(24, 44), nn.Tanh(), nn.Linear(44, 128)), torch.randn(64, 24)
        with torch.no_grad():
            target = model(x) + 0.05 * torch.randn(64, 128)

        def loss(x: Tensor, target: Tensor) -> Tensor:
            return (2 - 2 * COMPARISONS[name](model(x), target).diagonal()).mean()

        torch.compile(loss, backend=backend, options=options)(x, target).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradient("aot_eager", None)
    ledger.clear()
    ours = gradient("actcomp", {"inner": "aot_eager", "min_bytes": 0})
    assert any(d.codec == "affine" and d.tensor.shape == (64, 128) for g in ledger.reports() for d in g.decisions)
    assert (plain - ours).norm() < 0.2 * plain.norm()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True), True),
        (lambda x: x / torch.linalg.vector_norm(x, dim=0, keepdim=True), False),
        (lambda x: x / torch.linalg.vector_norm(x, 1, dim=-1, keepdim=True), False),
        (lambda x: x * (x**2).sum(-1, keepdim=True).rsqrt(), True),
        (lambda x: x * (x**2).mean(-1, keepdim=True).rsqrt(), False),
        (lambda x: (x**2).sum(-1), False),
    ],
)
def test_what_takes_the_length_of_rows(function: Callable[[Tensor], Tensor], expected: bool) -> None:
    pair = capture(lambda x: function(x.exp()).sum(), (torch.randn(8, 32, requires_grad=True),))
    (exp,) = (node for node in pair.fw.graph.nodes if node.name == "exp")
    assert has_length_taken(exp) is expected
