"""Affine group quantization that keeps signs, in traceable ATen: a sign, and magnitudes with a scale for each sign.

With H = 2^(bits - 1) and, per group and sign, a bf16 scale ≥ max|x|/(H - 1) of the values of that sign:

    code = floor(H + x/scale₊ + u)           for x > 0:  H … 2H - 1
    code = floor(H - 1 + x/scale₋ + u)       for x ≤ 0:  0 … H - 1

The two codes in the middle both stand for zero, so that rounding at random is unbiased on either side. Roundings and
the noise are those of `reference`.
"""

import torch

from fxcompress.codecs import bitpack
from fxcompress.codecs.affine.reference import pack_codes, range_of, read_word
from fxcompress.codecs.groups import LARGEST, inverse, scale_bits, to_groups, to_rows

NAN_WORD = 0x7FC07FC0


def least_positive(dtype: torch.dtype) -> float:
    """What the lowest positive code stands for: a number that is positive in `dtype`, too."""
    return 2.0**-24 if dtype == torch.float16 else 2.0**-126


def encode(
    x: torch.Tensor, bits: int, group: int, salt: int | torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize real values. Arguments and results as in `reference.encode`, `bits` from 2 on."""
    half, grouped = 2 ** (bits - 1), to_groups(x, group)
    values = grouped.to(torch.float32)
    # Only double precision holds positive values that are zero in fp32.
    below = (grouped if x.dtype == torch.float64 else values) <= 0
    low, top = range_of(values, values, bits)
    word = scale_bits(top.clamp_min(0), half - 1) | ((scale_bits(-low.clamp_max(0), half - 1) >> 16) & 0xFFFF)
    word = torch.where((low >= -LARGEST) & (top <= LARGEST), word, NAN_WORD)
    wide = word[..., None]
    fixed = values * torch.where(below, inverse(wide << 16), inverse(wide)) * 256.0

    def start(one: float) -> torch.Tensor:
        added: torch.Tensor = below.to(torch.float32) * -256.0 + (one + 256.0 * half)
        return added

    return pack_codes(fixed, word, bits, salt, start), word


def decode(codes: torch.Tensor, word: torch.Tensor, bits: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of `encode`: `[*lead, cols]` of `dtype`."""
    above_scale, below_scale = read_word(word, within=2)
    steps = bitpack.unpack_real(codes, bits) - 2.0 ** (bits - 1)
    below = steps < 0
    scale = torch.where(below, below_scale, above_scale)
    return to_rows(steps * scale + torch.where(below, below_scale, least_positive(dtype)), cols, dtype, within=2)
