"""Blocks of transformers' models at their published widths, on fake tensors: nothing is allocated.

A factory returns (module, inputs). The module maps one activation that wants a gradient to another of the same kind;
its backward starts from a gradient of the output, as in the middle of a network. Two blocks follow each other, so that
what passes between blocks is there too. Attention has no dropout: the CPU's fused attention, which stands in for
CUDA's, offers none.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Case = tuple[nn.Module, tuple[Tensor, ...]]
DEPTH = 2
FUSED: dict[str, Any] = {"attn_implementation": "sdpa"}
"""Accepted by all configurations, but not declared by the subclasses."""


class Blocks(nn.Module):
    """Blocks in sequence; each may return a tuple that begins with its activation."""

    def __init__(self, blocks: list[nn.Module], extras: dict[str, object] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.extras = extras or {}

    def forward(self, x: Tensor, *rotary: Tensor) -> Tensor:
        """Apply all blocks; `rotary` is (cos, sin), for those that rotate by position."""
        extras = {**self.extras, "position_embeddings": rotary} if rotary else self.extras
        for block in self.blocks:
            out = block(x, **extras)
            x = out[0] if isinstance(out, tuple) else out
        return x


def gpt2(batch: int = 8, time: int = 1024, width: int = 768) -> Case:
    """GPT-2 (124M): pre-LN, fused qkv, tanh GELU, dropout after both projections."""
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = GPT2Config(n_embd=width, n_head=width // 64, attn_pdrop=0.0, use_cache=False, **FUSED)
    blocks: list[nn.Module] = [GPT2Block(config, layer_idx=i) for i in range(DEPTH)]  # type: ignore[no-untyped-call]
    return Blocks(blocks), (_activation(batch, time, width),)


def llama(batch: int = 4, time: int = 2048, width: int = 2048, inner: int = 8192) -> Case:
    """Llama 3.2 (1B): RMSNorm, rotary positions, SwiGLU, grouped-query attention."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    heads = width // 64
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_attention_heads=heads, num_key_value_heads=max(heads // 4, 1),
        use_cache=False, **FUSED,
    )  # fmt: skip
    rotary = (torch.randn(1, time, 64), torch.randn(1, time, 64))
    blocks: list[nn.Module] = [LlamaDecoderLayer(config, layer_idx=i) for i in range(DEPTH)]
    return Blocks(blocks, {"use_cache": False}), (_activation(batch, time, width), *rotary)


def vit(batch: int = 128, time: int = 197, width: int = 768) -> Case:
    """ViT-B/16: pre-LN, GELU, no dropout."""
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTLayer

    config = ViTConfig(hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width, **FUSED)
    return Blocks([ViTLayer(config) for _ in range(DEPTH)]), (_activation(batch, time, width),)


def resnet(batch: int = 256, side: int = 28, channels: int = 512) -> Case:
    """ResNet-50, second stage: bottleneck blocks of convolution, batch norm and ReLU."""
    from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer

    blocks: list[nn.Module] = [ResNetBottleNeckLayer(channels, channels) for _ in range(DEPTH)]
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    return Blocks(blocks), (x.requires_grad_(),)


BLOCKS: Mapping[str, Callable[..., Case]] = {factory.__name__: factory for factory in (gpt2, llama, vit, resnet)}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create parameters and activations in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _activation(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)
