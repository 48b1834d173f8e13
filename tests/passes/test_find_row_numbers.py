"""Numbers that whole rows of a loss are multiplied with: they may differ by orders of magnitude, and are kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress import ledger
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_loss_factors import find_loss_factors
from fxcompress.passes.find_row_numbers import find_row_numbers
from fxcompress.passes.find_saved import find_saved
from fxcompress.testing_graphs import capture

FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}


def denoising(net: nn.Module, x: Tensor) -> Tensor:
    """A diffusion loss whose weights make up for the noise levels of samples."""
    sigma = torch.exp(torch.randn(len(x), 1) * 1.2 - 1.2)
    total, out = sigma**2 + 0.25, 0.5 * sigma / (sigma**2 + 0.25).sqrt()
    noisy = x + sigma * torch.randn_like(x)
    denoised = 0.25 / total * noisy + out * net(noisy / total.sqrt())
    return (total / (0.5 * sigma) ** 2 * (denoised - x).square()).mean()


def gradients(backend: str, options: dict[str, object] | None = None) -> dict[str, Tensor]:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 96), nn.SiLU(), nn.Linear(96, 128))
    x = torch.randn(128, 128)
    torch.compile(lambda x: denoising(net, x), backend=backend, options=options)(x).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_gradients_of_weighted_samples_keep_to_the_width_of_operands() -> None:
    plain, ours = gradients("aot_eager"), gradients("actcomp", FAST)
    for key, gradient in plain.items():
        assert (ours[key] - gradient).norm() < 0.03 * gradient.norm(), key


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda y, row: (y * row.exp()).sum(), {"exp"}),
        (lambda y, row: (y[:, :4] * row.exp()).sum(), set()),
        (lambda y, row: (y * row.expand(8, 16).exp()).sum(), set()),
        (lambda y, row: ((y * row.exp()) @ y.T).sum(), set()),
    ],
)
def test_they_stand_between_the_loss_and_the_last_product(
    loss: Callable[[Tensor, Tensor], Tensor], expected: set[str]
) -> None:
    x, w, row = torch.randn(8, 16), torch.randn(16, 16, requires_grad=True), torch.randn(8, 1)
    pair = capture(lambda x, w, row: loss(x @ w, row), (x, w, row), "default")
    sources = {each.bw for each in find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)}
    gradient = gradient_nodes(pair.bw, sources)
    found = find_row_numbers(find_loss_factors(pair.bw, sources, gradient), gradient)
    assert {node.name for node in found} == expected
