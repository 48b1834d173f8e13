"""Three image classifiers for scikit-learn's digits: a CNN, a small ViT, and a binary CNN.

Each maps float32 images [batch, 1, side, side] to logits [batch, 10].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.binary import BinaryConv

CLASSES = 10


class CNN(nn.Module):
    """Conv-BN-ReLU blocks with max-pooling and dropout."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in zip((1, *widths), widths, strict=False):
            layers += [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
            layers += [nn.Conv2d(outer, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images of any even side that survives the pooling."""
        logits: Tensor = self.head(self.features(images).mean((2, 3)))
        return logits


class Encoder(nn.Module):
    """A pre-LN transformer block without a causal mask."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, patches, width] to the same shape."""
        batch, patches, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, patches, width))
        changed: Tensor = x + self.mlp(x)
        return changed


class ViT(nn.Module):
    """A vision transformer over square patches, averaged before the head."""

    def __init__(
        self,
        side: int = 16,
        patch: int = 4,
        width: int = 64,
        heads: int = 4,
        layers: int = 3,
        dropout: float = 0.1,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.5 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images of the side given at construction."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class BNN(nn.Module):
    """A binary CNN: real first layer, then convolutions of ±1 activations with scaled ±1 weights."""

    def __init__(self, width: int = 56) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.Hardtanh())
        self.body = nn.Sequential(
            BinaryConv(width, width), nn.BatchNorm2d(width), nn.Hardtanh(),
            BinaryConv(width, width), nn.BatchNorm2d(width), nn.Hardtanh(),
        )  # fmt: skip
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Classify 8x8 images."""
        logits: Tensor = self.head(self.body(self.stem(images)).mean((2, 3)))
        return logits


class WithLoss(nn.Module):
    """A classifier that returns its mean cross-entropy, so that the logits are no output that the caller holds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return a scalar loss; `labels` is int64 [batch]."""
        return F.cross_entropy(self.network(images), labels)
