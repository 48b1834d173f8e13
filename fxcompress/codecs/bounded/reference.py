"""Error-bounded codes at a fixed rate, in traceable ATen (after COMET, Jin et al., VLDB 2022, without its coder).

With a step per group, all of a tensor's values are first rounded to multiples of it, so that zero is one of them:

    q = round(x/step),   anchor = min q of the group,   code = q - anchor in 0 … 2^bits - 1,   x̂ = (anchor + code)·step

The step is twice the bound, less what rounding x̂ to its dtype may add, where the group's range and magnitude fit the
code and the anchor at that step; elsewhere it is the smallest that fits. The groups that would need the largest steps
are stored as they are, as many as there is room for. All arithmetic is fp32, whatever the input.
"""

import math

import torch

from fxcompress.codecs import bitpack
from fxcompress.codecs.groups import LARGEST, SMALLEST_SCALE_BITS, floor_bits, inverse, scale_bits, to_groups, to_rows

_HIGH_HALF = -65536
_NAN_SCALE = 0x7FC00000
LARGEST_ANCHOR = 8191
"""|x| ≤ 8191 steps: rounding x/step and q·step in fp32 adds less than 2⁻⁹ of a step to the error."""
SAFETY = 1 - 2**-7
"""Share of the bound that half a step may take; the rest covers that rounding."""


def encode(x: torch.Tensor, eps: float | torch.Tensor, bits: int, group: int, room: int) -> tuple[torch.Tensor, ...]:
    """Quantize within `eps`.

    Args:
        x: `[*lead, cols]`, any float dtype.
        eps: the bound, a number or fp32 that broadcasts against `[*lead, groups]`.
        bits: 2, 4 or 8.
        group: elements per group.
        room: how many groups of a row are stored as they are.

    Returns:
        codes uint8 `[*lead, groups, group·bits/8]` and word int32 `[*lead, groups]` (step << 16 | anchor, bf16 and
        int16); if there is room, also raw `[*lead, room, group]` of the dtype of `x` and index int32 `[*lead, room]`.
    """
    grouped = to_groups(x, group)
    values = grouped.to(torch.float32)
    low, top = values.amin(-1), values.amax(-1)
    largest = torch.maximum(low.abs(), top.abs())
    planned = floor_bits(_planned_step(largest, eps, x.dtype)).clamp_min(SMALLEST_SCALE_BITS)
    fitting = torch.maximum(scale_bits(top - low, 2**bits - 2), scale_bits(largest, LARGEST_ANCHOR))
    finite = largest <= LARGEST
    step_bits = torch.where(finite, torch.maximum(planned, fitting), _NAN_SCALE)
    rate = inverse(step_bits)
    # Of a group that is not finite, only the NaN step is read back.
    anchor = torch.where(finite, torch.round(low * rate), 0.0).to(torch.int32)
    steps = torch.where(finite[..., None], torch.round(values * rate[..., None]), 0.0).to(torch.int32)
    codes = bitpack.pack((steps - anchor[..., None]).clamp(0, 2**bits - 1), bits)
    word = step_bits | (anchor & 0xFFFF)
    if not room:
        return codes, word
    # Ratios of positive floats of one tensor are ordered as the differences of their bits are, near enough to rank.
    excess = torch.where(finite, fitting - planned, torch.iinfo(torch.int32).min)
    # Of equals the first are stored: which of them `topk` would take, and in what order, differs between devices. Bits
    # of bf16 values have 16 zeros at their end, so that 64 bits hold the place too.
    place = torch.arange(excess.shape[-1], device=excess.device)
    index = (excess.to(torch.int64) * 2**16 - place).topk(room, -1).indices
    raw = torch.where(finite[..., None], grouped, math.nan).gather(-2, index[..., None].expand(*index.shape, group))
    return codes, word, raw, index.to(torch.int32)


def decode(parts: tuple[torch.Tensor, ...], bits: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of `encode`: `[*lead, cols]` of `dtype`."""
    codes, word = parts[:2]
    anchor = ((word << 16) >> 16)[..., None, None]
    step = (word & _HIGH_HALF).view(torch.float32)[..., None, None]
    values = (bitpack.unpack(codes, bits) + anchor).to(torch.float32) * step
    rows = to_rows(values, math.prod(values.shape[-3:]), dtype, within=2)
    if len(parts) == 2:
        return rows if cols == rows.shape[-1] else rows[..., :cols]
    raw, index = parts[2:]
    grouped = rows.reshape(*word.shape, math.prod(values.shape[-2:]))
    places = index.to(torch.int64)[..., None].expand(raw.shape)
    whole = grouped.scatter(-2, places, raw).reshape(rows.shape)
    return whole if cols == rows.shape[-1] else whole[..., :cols]


def stated_bound(word: torch.Tensor) -> torch.Tensor:
    """fp32 `[*lead, groups]`: a bound on each group's error before casting; NaN for a group that is not finite."""
    return (word & _HIGH_HALF).view(torch.float32) * (0.5 / SAFETY)


def _planned_step(largest: torch.Tensor, eps: float | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest step that keeps the bound, fp32 `[*lead, groups]`.

    Casting x̂ to `dtype` adds at most half a unit in the last place of the group's largest magnitude. It also adds at
    most the error that is there already, because x itself is a value of `dtype`: half the bound is always enough.
    """
    info = torch.finfo(torch.float32 if dtype == torch.float64 else dtype)
    least = info.smallest_normal * info.eps / 2
    bound = torch.as_tensor(eps, dtype=torch.float32, device=largest.device)
    left = bound - (largest + bound) * (info.eps / 2) - least
    return torch.maximum(bound * 0.5, left) * (2 * SAFETY)
