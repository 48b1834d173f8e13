"""Affine codes from ranges that are given, in traceable ATen (after Mesa, Pan et al., 2021).

    code = round((clamp(x, low, high) - zero)/scale),   x̂ = zero + code·scale

with `affine`'s outward roundings of zero and scale. Mesa clamps below only: there a value above its running range wraps
around to a low code. All arithmetic is fp32, whatever the input.
"""

import torch

from fxcompress.codecs import bitpack, noise
from fxcompress.codecs.affine.reference import make_word, read_word
from fxcompress.codecs.groups import LARGEST, floor_bits, inverse

_NAN_SCALE = 0x7FC00000


def encode(
    values: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    bits: int,
    salt: int | torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize within given ranges.

    Args:
        values: fp32 `[*lead, heads, group]`.
        low, high: fp32, broadcast against `[*lead, heads]`.
        bits: 1, 2, 4 or 8.
        salt: the noise's name for stochastic rounding, None for nearest.

    Returns:
        codes uint8 `[*lead, heads, group·bits/8]`, word int32 `[*lead, heads]`; a NaN scale for a head that holds NaN,
        Inf or a magnitude above 2¹²⁵.
    """
    levels = 2**bits - 1
    finite = values.abs().amax(-1) <= LARGEST
    word = torch.where(finite, make_word(floor_bits(low), high, levels), _NAN_SCALE)
    _, zero = read_word(word)
    steps = torch.where(finite[..., None], ((values - zero) * inverse(word[..., None])).clamp(0, levels), 0.0)
    if salt is None:
        return bitpack.pack(torch.round(steps).to(torch.int32), bits), word
    fixed = torch.round(steps * 256.0).to(torch.int32)
    return bitpack.pack_dithered(fixed, noise.words(salt, word, values.shape[-1]), bits), word
