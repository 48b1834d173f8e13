"""Groups end where normalized rows do, and rows of zeros leave no error behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import ledger


class Masked(nn.Module):
    """Normalizes what a product makes of rows of which some are masked."""

    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = norm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.norm(self.linear(F.gelu(x * mask)))


def gradients(width: int, norm: type[nn.Module], backend: str, options: dict[str, object] | None = None) -> Tensor:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Masked(width, norm), torch.randn(64, width)
    mask = (torch.arange(64) % 5 > 0).float()[:, None]
    compiled = torch.compile(model, backend=backend, options=options)
    (compiled(x, mask) * torch.randn(64, width)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("width", [32, 48, 128, 192])
def test_rows_of_zeros_leave_no_error(width: int, norm: type[nn.Module]) -> None:
    plain = gradients(width, norm, "aot_eager")
    ledger.clear()
    ours = gradients(width, norm, "actcomp", {"inner": "aot_eager", "min_bytes": 64})
    encoded = [dict(d.params) for graph in ledger.reports() for d in graph.decisions if d.codec == "affine"]
    assert len(encoded) == 2 and all(width % int(str(params["group"])) == 0 for params in encoded)
    assert (plain - ours).norm() < 0.15 * plain.norm()
