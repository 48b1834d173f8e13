"""Models at their published sizes in plain torch, for a GPU, each with a random batch; all return a scalar loss.

A factory takes the batch size and whether to be a toy of the same structure: (module, arguments). Images and the
convolutions' weights lie channels last.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bench.models import digits_nets
from bench.models.gpt import GPT, GPTConfig

Case = tuple[nn.Module, tuple[Tensor, ...]]
LABELS = digits_nets.CLASSES


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions; the stride is on the 3x3."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.body = nn.Sequential(
            *_convolution(inner, width, 1), nn.ReLU(),
            *_convolution(width, width, 3, stride), nn.ReLU(),
            *_convolution(width, outer, 1),
        )  # fmt: skip
        same = inner == outer and stride == 1
        self.short = nn.Identity() if same else nn.Sequential(*_convolution(inner, outer, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inner, height, width] to [batch, 4·width, height/stride, width/stride]."""
        return torch.relu(self.body(x) + self.short(x))


class ResNet(nn.Module):
    """ResNet of bottleneck blocks; `depths` (3, 4, 6, 3) is ResNet-50."""

    def __init__(self, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks, inner = [], width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                blocks.append(Bottleneck(inner, width << stage, 2 if stage and not i else 1))
                inner = 4 * width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inner, LABELS)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images [batch, 3, side, side]."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


def gpt2_medium(batch: int, toy: bool) -> Case:
    """GPT-2 medium: 24 layers of width 1024, 1024 tokens, 50 304 words."""
    medium = GPTConfig(vocabulary=50304, context=1024, layers=24, heads=16, width=1024)
    config = GPTConfig(vocabulary=64, context=64, layers=2, heads=2, width=64) if toy else medium
    text = torch.randint(0, config.vocabulary, (batch, config.context + 1))
    return GPT(config), (text[:, :-1].contiguous(), text[:, 1:].contiguous())


def vit_base(batch: int, toy: bool) -> Case:
    """ViT-B/16 without dropout, averaged over patches before the head."""
    side, patch, width, heads, layers = (32, 8, 64, 2, 2) if toy else (224, 16, 768, 12, 12)
    network = digits_nets.ViT(side, patch, width, heads, layers, dropout=0.0, channels=3)
    return _classifier(network, batch, side)


def resnet50(batch: int, toy: bool) -> Case:
    """ResNet-50."""
    return _classifier(ResNet((1, 1), 16) if toy else ResNet(), batch, 32 if toy else 224)


def _classifier(network: nn.Module, batch: int, side: int) -> Case:
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, LABELS, (batch,))
    module = digits_nets.WithLoss(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module, (images.to(memory_format=torch.channels_last), labels)


def _convolution(inner: int, outer: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inner, outer, size, stride, size // 2, bias=False), nn.BatchNorm2d(outer)


LARGE: Mapping[str, Callable[[int, bool], Case]] = {
    factory.__name__: factory for factory in (vit_base, resnet50, gpt2_medium)
}
