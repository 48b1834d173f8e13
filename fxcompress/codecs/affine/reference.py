"""Affine group quantization in traceable ATen: the CPU path in production, and what other kernels are tested against.

With B = 2^bits - 1 and, per group, a bf16 zero ≤ min and a bf16 scale ≥ (max - zero)/B:

    code = floor((x - zero)/scale + u),   x̂ = zero + code·scale

Both roundings are outwards, so every code is in 0 … B without a clamp and |x̂ - x| ≤ scale. Nearest rounding has u = ½,
ties to even. Stochastic rounding first rounds (x - zero)/scale to 1/256, then has u = byte/256; the first rounding
centres the noise, so that sums over many elements have no bias. All arithmetic is fp32, whatever the input.
"""

import math
from collections.abc import Callable

import torch

from fxcompress.codecs import bitpack, noise, planes
from fxcompress.codecs.groups import LARGEST, SMALLEST_SCALE_BITS, floor_bits, inverse, scale_bits, to_groups, to_rows

_HIGH_HALF = -65536
_NAN_SCALE = 0x7FC00000
_INFINITY = 0x7F800000


def make_word(zero_bits: torch.Tensor, top: torch.Tensor, levels: int, largest: float = LARGEST) -> torch.Tensor:
    """Pack the groups' metadata.

    Args:
        zero_bits: int32 `[*lead, groups]`, bits of a bf16 value at or below the group's minimum, as fp32.
        top: fp32 `[*lead, groups]`, the group's maximum; NaN if the group holds one.
        levels: number of steps from zero to top.
        largest: a group that reaches beyond counts as not finite.

    Returns:
        int32 `[*lead, groups]`: bf16 bits, scale << 16 | zero; a NaN scale for a group that is not finite.
    """
    zero = zero_bits.view(torch.float32)
    word = scale_bits(top - zero, levels) | ((zero_bits >> 16) & 0xFFFF)
    finite = (zero >= -largest) & (top <= largest)
    return torch.where(finite, word, _NAN_SCALE)


def read_word(word: torch.Tensor, within: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 `[*lead, groups]` → fp32 (scale, zero), each `[*lead, groups, 1 …]` with `within` ones."""
    wide = word.reshape(*word.shape, *(1,) * within)
    return (wide & _HIGH_HALF).view(torch.float32), (wide << 16).view(torch.float32)


def encode(
    x: torch.Tensor, bits: int, group: int, salt: int | torch.Tensor | None, *, largest: float = LARGEST
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize real values.

    Args:
        x: `[*lead, cols]`, any float dtype.
        bits: 1, 2, 4 or 8.
        group: elements per group.
        salt: the noise's name for stochastic rounding, None for nearest.
        largest: as for `make_word`; at most 2¹²⁶.

    Returns:
        codes uint8 `[*lead, groups, group·bits/8]`, word int32 `[*lead, groups]`.
    """
    values = to_groups(x, group).to(torch.float32)
    low, top = range_of(values, values, bits)
    word = make_word(floor_bits(low), top, 2**bits - 1, largest)
    return pack_codes(_fixed(values, word, inverse(word[..., None])), word, bits, salt), word


def decode(codes: torch.Tensor, word: torch.Tensor, bits: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of `encode`: `[*lead, cols]` of `dtype`."""
    scale, zero = read_word(word, within=2)
    return to_rows(bitpack.unpack_real(codes, bits) * scale + zero, cols, dtype, within=2)


def encode_zero_preserving(
    x: torch.Tensor, bits: int, group: int, salt: int | torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize non-negative values so that code 0 stands for x ≤ 0 and for nothing else; NaN counts as positive.

    The positive values of a group share the codes 1 … B over their own range. Arguments and results as in `encode`.
    """
    grouped = to_groups(x, group)
    values = grouped.to(torch.float32)
    # Only double precision holds positive values that are zero in fp32. Compared in fp32, and anew at each use, the
    # signs are no tensor that Inductor would keep in memory.
    signed = grouped if x.dtype == torch.float64 else values
    low, top = range_of(torch.where(signed <= 0, math.inf, values), values, bits)
    lowest = floor_bits(low)
    # Inf: no element is positive. Below the smallest normal number, zero could become 0 and decode positives to 0.
    zero_bits = torch.where(lowest == _INFINITY, 0, lowest.clamp_min(SMALLEST_SCALE_BITS))
    word = make_word(zero_bits, top, 2**bits - 2)
    # With the corrected reciprocal, Inductor would split the kernel: it counts operators.
    fixed = _fixed(values, word, read_word(word)[0].reciprocal())
    # `fixed > 0` also sends NaN to the lowest positive code: a NaN must not come back as zero.
    codes = torch.where(signed <= 0, 0.0, torch.where(fixed > 0, fixed, 0.0) + 256.0)
    return pack_codes(codes, word, bits, salt), word


def decode_zero_preserving(
    codes: torch.Tensor, word: torch.Tensor, bits: int, cols: int, dtype: torch.dtype
) -> torch.Tensor:
    """Inverse of `encode_zero_preserving`: `[*lead, cols]` of `dtype`."""
    scale, zero = read_word(word, within=2)
    wide = bitpack.unpack_real(codes, bits)
    return to_rows(torch.where(wide == 0, 0.0, (wide - 1) * scale + zero), cols, dtype, within=2)


def range_of(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimum of `low` and maximum of `high` over each group."""
    if not planes.wanted(low):
        return low.amin(-1), high.amax(-1)
    return planes.lowest(planes.unbind(low, 8 // bits)), planes.highest(planes.unbind(high, 8 // bits))


def _fixed(values: torch.Tensor, word: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """256·(x - zero)·rate, where rate is 1/scale; no positive number for a positive x of a group that is not finite.

    Read back from the word, which is in memory anyway: Inductor would compute its inputs anew for every element. The
    last product is exact, so that a compiler may fuse it with a sum: the one before would not be rounded.
    """
    _, zero = read_word(word)
    return (values - zero) * rate * 256.0


def pack_codes(
    codes: torch.Tensor,
    word: torch.Tensor,
    bits: int,
    salt: int | torch.Tensor | None,
    start: Callable[[float], torch.Tensor | float] = float,
) -> torch.Tensor:
    """Round codes times 256, fp32 `[*lead, groups, group]`, and pack them. `start(one)` is `one` plus what is to be
    added to each code, times 256."""
    if salt is None:
        return bitpack.pack(_to_integer(codes, start(2.0**31)), bits)
    return bitpack.pack_dithered(_to_integer(codes, start(2.0**23)), noise.words(salt, word, codes.shape[-1]), bits)


def _to_integer(x: torch.Tensor, one: torch.Tensor | float) -> torch.Tensor:
    """fp32 in 0 … 2¹⁶ units to the nearest int32, ties to even; anything for NaN. `one` is 2²³ units, or more.

    Added to that the integer stands in the low bits: an add, where a conversion has a quarter of a GPU's rate or less.
    """
    return (x + one).view(torch.int32) & 0xFFFF
