"""Scaled 8-bit floating point in traceable ATen: per group scale = amax/(largest code) and code = round(x/scale).

The scale is rounded up to bf16, so no code overflows. All arithmetic is fp32, whatever the input.
"""

import math

import torch

from fxcompress.codecs.groups import LARGEST, inverse, scale_bits, to_groups, to_rows


def encode(x: torch.Tensor, code: torch.dtype, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to nearest.

    Args:
        x: `[*lead, cols]`, any float dtype.
        code: an 8-bit float dtype.
        group: elements per group.

    Returns:
        codes of dtype `code` `[*lead, groups, group]`, scale bf16 `[*lead, groups]`, NaN if not finite.
    """
    values = to_groups(x, group).to(torch.float32)
    largest = values.abs().amax(-1)
    bits = scale_bits(largest, torch.finfo(code).max)
    scale = torch.where(largest <= LARGEST, bits.view(torch.float32), math.nan)
    return (values * inverse(bits)[..., None]).to(code), scale.to(torch.bfloat16)


def decode(codes: torch.Tensor, scale: torch.Tensor, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of `encode`: `[*lead, cols]` of `dtype`."""
    return to_rows(codes.to(torch.float32) * scale.to(torch.float32)[..., None], cols, dtype)
