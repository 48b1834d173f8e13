"""Rows to groups and back, and rounding to bf16 in a stated direction."""

import math

import torch

LARGEST = 2.0**125
"""A larger magnitude counts as non-finite: beyond it max - min, the decode or 1/scale leaves fp32's normal range."""
SMALLEST_SCALE = 2.0**-126
"""Smallest normal fp32, so that 1/scale is finite."""
_HIGH_HALF = -65536
_FLOAT16_LARGEST = 65504.0


def bf16_floor(x: torch.Tensor) -> torch.Tensor:
    """Largest bf16 ≤ x, as fp32; NaN comes back as anything."""
    bits = x.view(torch.int32)
    # A negative number grows in magnitude when rounded down: carry its low half into the part kept.
    return ((bits + ((bits >> 31) & 0xFFFF)) & _HIGH_HALF).view(torch.float32)


def bf16_ceil_positive(x: torch.Tensor) -> torch.Tensor:
    """Smallest bf16 ≥ x for x ≥ 0, as fp32; NaN comes back as anything."""
    return ((x.view(torch.int32) + 0xFFFF) & _HIGH_HALF).view(torch.float32)


def reciprocal(levels: float) -> float:
    """Largest fp32 ≤ 1/levels, so that `levels·s·reciprocal(levels)` never rounds up past a bf16 s."""
    mantissa, exponent = math.frexp(1 / levels)
    return math.ldexp(math.floor(mantissa * 2**24), exponent - 24)


def scale_for(span: torch.Tensor, levels: float) -> torch.Tensor:
    """Smallest normal bf16 s ≥ 0 with levels·s ≥ span but for fp32 rounding, as fp32; 0 only for span 0.

    A product, not a quotient: a GPU's exact division is a subroutine.
    """
    return torch.where(span > 0, bf16_ceil_positive(span * reciprocal(levels)).clamp_min(SMALLEST_SCALE), 0.0)


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """1/scale, and 0 where scale is 0 or NaN."""
    return torch.where(scale > 0, 1.0 / scale, 0.0)


def to_groups(x: torch.Tensor, group: int) -> torch.Tensor:
    """`[*lead, cols]` → `[*lead, groups, group]`; the last element of each row is repeated, so that no range widens."""
    *lead, cols = x.shape
    missing = -cols % group
    if missing:
        x = torch.cat((x, x[..., -1:].expand(*lead, missing)), -1)
    return x.reshape(*lead, (cols + missing) // group, group)


def to_rows(grouped: torch.Tensor, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """fp32 `[*lead, groups, group]` → `[*lead, cols]` of `dtype`."""
    if dtype == torch.float16:
        # A scale or zero rounded away from the data can lie beyond fp16's largest value.
        grouped = grouped.clamp(-_FLOAT16_LARGEST, _FLOAT16_LARGEST)
    *lead, groups, group = grouped.shape
    rows = grouped.to(dtype).reshape(*lead, groups * group)
    return rows if cols == groups * group else rows[..., :cols]
