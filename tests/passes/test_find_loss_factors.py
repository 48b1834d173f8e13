"""What the gradient of a loss begins with: its error is one of every gradient."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import ledger
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_loss_factors import find_loss_factors
from fxcompress.passes.find_saved import find_saved
from fxcompress.testing_graphs import capture

FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "huber": lambda x, y: F.huber_loss(x, y, delta=10.0),
    "weighted": lambda x, y: ((x - y).square() * y.abs().sigmoid()).mean(),
    "probabilities": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "behind an activation": lambda x, y: (x.tanh() - y).square().mean(),
    "softplus": lambda x, y: F.softplus(x * y.sign() * 8).mean(),
    "margin": lambda x, y: F.soft_margin_loss(x * 8, y.sign()),
    "rows": lambda x, y: (x - y).square().sum(1).add(1e-3).sqrt().mean(),
}


def gradients(name: str, backend: str, options: dict[str, object] | None = None) -> dict[str, Tensor]:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 96))
    x, heavy = torch.randn(64, 16), torch.randn(64, 96) / torch.rand(64, 96)
    torch.compile(lambda x: LOSSES[name](net(x), heavy.clamp(-30, 30)), backend=backend, options=options)(x).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LOSSES)
def test_the_whole_gradient_keeps_to_the_width_of_operands(name: str) -> None:
    plain, ours = gradients(name, "aot_eager"), gradients(name, "actcomp", FAST)
    for key, gradient in plain.items():
        assert (ours[key] - gradient).norm() < 0.03 * gradient.norm(), key


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, w: (x.sin() @ w).tanh().sum(), {"detach"}),
        (lambda x, w: ((x.sin() @ w).tanh() @ w).square().mean(), {"mm_1"}),
        (lambda x, w: F.logsigmoid(x.sin() @ w).sum(), {"mm", "getitem_1"}),
        (lambda x, w: (x.sin() @ w).tanh(), set()),
        (lambda x, w: (x.sin() @ w).tanh().softmax(1)[:, :2].sum(), set()),
    ],
)
def test_factors_are_what_stands_between_a_scalar_and_the_last_product(function, expected: set[str]) -> None:
    x, w = torch.randn(8, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    pair = capture(function, (x, w), "default")
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    sources = {each.bw for each in pairs}
    found = find_loss_factors(pair.bw, sources, gradient_nodes(pair.bw, sources))
    assert {node.name for node in found} == expected
