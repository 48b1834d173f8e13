"""Rows to groups and back, and rounding to bf16 in a stated direction."""

import math

import torch

from fxcompress.codecs import planes

LARGEST = 2.0**125
"""A larger magnitude counts as non-finite: beyond it max - min, the decode or 1/scale leaves fp32's normal range."""
SMALLEST_SCALE_BITS = 0x00800000
"""2⁻¹²⁶, the smallest normal fp32, so that 1/scale is finite."""
_HIGH_HALF = -65536
_FLOAT16_LARGEST = 65504.0


def floor_bits(x: torch.Tensor) -> torch.Tensor:
    """int32 bits of the largest bf16 ≤ x, as fp32; anything for NaN. Zero is +0."""
    # The order of evaluation decides whether a minimum over zeros of both signs is -0; adding 0 makes it +0.
    bits = (x + 0.0).view(torch.int32)
    # A negative number grows in magnitude when rounded down: carry its low half into the part kept.
    return (bits + ((bits >> 31) & 0xFFFF)) & _HIGH_HALF


def nearest_bf16(x: torch.Tensor) -> torch.Tensor:
    """fp32 `x` rounded to the nearest bf16, still in fp32; anything for NaN.

    By its bits: a cast to bf16 and back is one that Inductor leaves out.
    """
    bits = x.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & _HIGH_HALF).view(torch.float32)


def reciprocal(levels: float) -> float:
    """Largest fp32 ≤ 1/levels, so that `levels·s·reciprocal(levels)` never rounds up past a bf16 s."""
    mantissa, exponent = math.frexp(1 / levels)
    return math.ldexp(math.floor(mantissa * 2**24), exponent - 24)


def scale_bits(span: torch.Tensor, levels: float) -> torch.Tensor:
    """int32 bits of the smallest normal bf16 s with levels·s ≥ span ≥ 0, but for fp32 rounding; anything for NaN.

    A product, not a quotient: a GPU's exact division is a subroutine. Positive floats compare as their bits do.
    """
    ceiling = ((span * reciprocal(levels)).view(torch.int32) + 0xFFFF) & _HIGH_HALF
    return ceiling.clamp_min(SMALLEST_SCALE_BITS)


def inverse(word: torch.Tensor) -> torch.Tensor:
    """1/scale of the positive bf16 scale in the high half of each int32, fp32, to nearest up to 2¹²⁶; NaN for NaN.

    The same bits from every compiler, though one for GPUs divides two units in the last place off: the reciprocal is
    rounded up to 16 bits, so that the first product of a Newton step is exact and only its last one is not. A CPU
    divides exactly.
    """
    scale = (word & _HIGH_HALF).view(torch.float32)
    if not planes.wanted(word):
        return scale.reciprocal()
    short = ((scale.reciprocal().view(torch.int32) + 0xFF) & -0x100).view(torch.float32)
    return short * (2.0 - scale * short)


def to_groups(x: torch.Tensor, group: int) -> torch.Tensor:
    """`[*lead, cols]` → `[*lead, groups, group]`; the last element of each row is repeated, so that no range widens."""
    *lead, cols = x.shape
    missing = -cols % group
    if missing:
        x = torch.cat((x, x[..., -1:].expand(*lead, missing)), -1)
    return x.reshape(*lead, (cols + missing) // group, group)


def to_rows(grouped: torch.Tensor, cols: int, dtype: torch.dtype, *, within: int = 1) -> torch.Tensor:
    """fp32 `[*lead, groups, *group]` → `[*lead, cols]` of `dtype`; a group has `within` dimensions."""
    if dtype == torch.float16:
        # A scale or zero rounded away from the data can lie beyond fp16's largest value.
        grouped = grouped.clamp(-_FLOAT16_LARGEST, _FLOAT16_LARGEST)
    rows = grouped.to(dtype).flatten(-1 - within)
    return rows if cols == rows.shape[-1] else rows[..., :cols]
