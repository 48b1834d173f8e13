"""Whatever divides rows by a number of their own: small rows beside large ones keep their gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress.passes.find_row_norms import normalizes_images, normalizes_rows

Norm = Callable[[Tensor], Tensor]
NORMS: dict[str, Norm] = {
    "normalize": lambda y: F.normalize(y, dim=-1),
    "cosine": lambda y: F.cosine_similarity(y, y.roll(1, 0), dim=-1)[:, None].expand_as(y),
    "length": lambda y: y / y.norm(dim=-1, keepdim=True),
    "sum": lambda y: y / y.abs().sum(-1, keepdim=True),
    "deviation": lambda y: y / y.std(-1, keepdim=True),
    "range": lambda y: (y - y.amin(-1, keepdim=True)) / (y.amax(-1, keepdim=True) - y.amin(-1, keepdim=True)),
    "largest": lambda y: y / y.abs().amax(-1, keepdim=True),
    "squares": lambda y: y * (y.square().sum(-1, keepdim=True) + 1e-12) ** -0.5,
}
OTHERS: dict[str, Norm] = {
    "softmax": lambda y: F.softmax(y, -1),
    "squares": lambda y: y.square().sum(-1, keepdim=True) * y,
    "columns": lambda y: y / y.norm(dim=0, keepdim=True),
    "of all": lambda y: y / y.norm(),
    "shift": lambda y: y - y.amax(-1, keepdim=True),
}


class Rows(nn.Module):
    """Rows whose scales differ a thousand times, normalized."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, width)
        self.norm = norm

    def forward(self, x: Tensor, scales: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x) * scales))


def gradients(width: int, norm: Norm, backend: str, options: dict[str, object] | None = None) -> Tensor:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Rows(width, norm), torch.randn(256, 20)
    scales = torch.logspace(0, -3, 256)[torch.randperm(256)][:, None]
    out = torch.compile(model, backend=backend, options=options)(x, scales)
    (out * torch.randn(256, width)).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("width", [36, 48])
def test_small_rows_keep_their_gradients(width: int, name: str) -> None:
    plain = gradients(width, NORMS[name], "aot_eager")
    ours = gradients(width, NORMS[name], "actcomp", {"inner": "aot_eager", "min_bytes": 0, "bits": 8})
    assert (plain - ours).norm() < 0.03 * plain.norm()


def readers(norm: Norm) -> list[fx.Node]:
    gm = make_fx(norm)(torch.randn(6, 5))
    (source,) = gm.graph.find_nodes(op="placeholder")
    return list(source.users)


@pytest.mark.parametrize("name", sorted(NORMS.keys() - {"cosine"}))
def test_what_normalizes_rows_is_found(name: str) -> None:
    """`cosine` writes in place here, which no graph does that AOTAutograd made."""
    assert any(map(normalizes_rows, readers(NORMS[name])))


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is(name: str) -> None:
    assert not any(map(normalizes_rows, readers(OTHERS[name])))


IMAGES: dict[str, Norm] = {
    "groups": lambda y: F.group_norm(y, 2),
    "instances": lambda y: F.instance_norm(y),
    "layer": lambda y: F.layer_norm(y, y.shape[1:]),
    "deviation": lambda y: (y - y.mean((1, 2, 3), keepdim=True)) / y.std((1, 2, 3), keepdim=True),
    "length": lambda y: y / y.norm(dim=(2, 3), keepdim=True),
    "squares": lambda y: y * (y.square().mean((1, 2, 3), keepdim=True) + 1e-5).rsqrt(),
    "largest": lambda y: y / y.abs().amax((1, 2, 3), keepdim=True),
}
NO_IMAGES: dict[str, Norm] = {
    "batch": lambda y: F.batch_norm(y, None, None, training=True),
    "rows": lambda y: F.layer_norm(y, y.shape[-1:]),
    "pixels": lambda y: F.normalize(y, dim=1),
    "of all": lambda y: y / y.square().sum((0, 1, 2, 3)).sqrt(),
    "shift": lambda y: y - y.amax((1, 2, 3), keepdim=True),
}


def reads_images(norm: Norm) -> bool:
    """Whether a normalization of images is among what reads a map or a view of it."""
    gm = make_fx(norm)(torch.randn(6, 4, 5, 3))
    return any(normalizes_images(node) for node in gm.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("name", IMAGES)
def test_what_normalizes_images_is_found(name: str) -> None:
    assert reads_images(IMAGES[name])


@pytest.mark.parametrize("name", NO_IMAGES)
def test_nothing_else_normalizes_images(name: str) -> None:
    assert not reads_images(NO_IMAGES[name])
