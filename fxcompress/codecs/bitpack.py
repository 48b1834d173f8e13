"""Packing small codes into bytes, half-split inside a block: packing and unpacking are shifts of contiguous runs.

A block of G codes of b bits becomes H = G·b/8 bytes, and byte j holds the codes j, j+H, j+2H, … from its low bits up.
Interleaved packing would need a shuffle across vector lanes (GPU: shared memory) on both sides.
"""

from collections.abc import Sequence

import torch

from fxcompress.codecs import planes
from fxcompress.codecs.noise import SLICES

WIDTHS = (1, 2, 4, 8)
"""Code widths that fill a byte evenly."""


def _shifts(bits: int, device: torch.device) -> torch.Tensor:
    """int32 `[8/bits, 1]`: the bit position of each of a byte's codes."""
    return torch.arange(0, 8, bits, dtype=torch.int32, device=device)[:, None]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 codes `[*lead, blocks, G]`, each below 2^bits → uint8 `[*lead, blocks, G·bits/8]`."""
    if bits == 8:
        return codes.to(torch.uint8)
    if planes.wanted(codes):
        placed = zip(range(0, 8, bits), planes.unbind(codes, 8 // bits), strict=True)
        return planes.merge([part << at if at else part for at, part in placed]).to(torch.uint8)
    shifted: torch.Tensor = planes.split(codes, 8 // bits) << _shifts(bits, codes.device)
    merged: torch.Tensor = shifted.sum(-2, dtype=torch.int32)
    return merged.to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 `[*lead, blocks, H]` → int32 codes `[*lead, blocks, H·8/bits]`."""
    wide = packed.to(torch.int32)
    if bits == 8:
        return wide
    *lead, size = packed.shape
    spread: torch.Tensor = (wide[..., None, :] >> _shifts(bits, packed.device)) & (2**bits - 1)
    return spread.reshape(*lead, size * 8 // bits)


def pack_dithered(
    fixed: torch.Tensor | Sequence[torch.Tensor], noise: tuple[torch.Tensor, ...], bits: int
) -> torch.Tensor:
    """Add one noise byte to each fixed-point code, drop the fraction, pack.

    Two codes travel in one int32, 16 bits each, through addition, truncation and packing: fixed ≤ 255·256, so that
    adding a byte never carries into the neighbour.

    Args:
        fixed: int32 `[*lead, groups, G]`, codes times 256; or its 16 planes `[*lead, groups, G/16]`.
        noise: `noise.words`, four int32 `[*lead, groups, G/16]`.
        bits: code width.

    Returns:
        uint8 `[*lead, groups, G·bits/8]`, laid out as by `pack`.
    """
    codes = [_add_bytes(part, word) for part, word in zip(_pairs(fixed), noise, strict=True)]
    pieces = [byte for row in _merge(codes, bits) for byte in _split(row, bits)]
    return torch.cat(pieces, -1)


def _pairs(fixed: torch.Tensor | Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """For each noise word its four slices, `[*lead, groups, G/16]`, two by two: (0 and 2, 1 and 3)."""
    if isinstance(fixed, torch.Tensor) and planes.wanted(fixed):
        fixed = planes.unbind(fixed, SLICES)
    if not isinstance(fixed, torch.Tensor):
        return [(fixed[i] + (fixed[i + 2] << 16), fixed[i + 1] + (fixed[i + 3] << 16)) for i in range(0, SLICES, 4)]
    *lead, size = fixed.shape
    quads = fixed.reshape(*lead, 4, 2, 2, size // SLICES)
    pairs = quads.select(-3, 0) + (quads.select(-3, 1) << 16)
    return [part.unbind(-2) for part in pairs.unbind(-3)]


def _add_bytes(pairs: tuple[torch.Tensor, ...], word: torch.Tensor) -> list[torch.Tensor]:
    """Dither the four slices that `word` serves, and drop their fractions."""
    even, odd = pairs
    low = 0x00FF00FF
    return [((even + (word & low)) >> 8) & low, ((odd + ((word >> 8) & low)) >> 8) & low]


def _merge(codes: list[list[torch.Tensor]], bits: int) -> list[list[torch.Tensor]]:
    """Or together the pairs that share bytes; `codes[w][p]` holds slices 4w+p and 4w+p+2."""
    if bits == 8:
        return codes
    if bits == 4:
        return [[codes[w][p] | codes[w + 2][p] << 4 for p in (0, 1)] for w in (0, 1)]
    return [[codes[0][p] | codes[1][p] << 2 | codes[2][p] << 4 | codes[3][p] << 6 for p in (0, 1)]]


def _split(row: list[torch.Tensor], bits: int) -> list[torch.Tensor]:
    """The uint8 slices held by one row of merged pairs, in memory order."""
    # The masks are for Inductor, whose int32 → uint8 conversion saturates in vector code (torch 2.13, CPU).
    if bits == 1:
        return [((pair | pair >> 15) & 0xFF).to(torch.uint8) for pair in row]
    low = [(pair & 0xFF).to(torch.uint8) for pair in row]
    if planes.wanted(row[0]):
        # Computed from the low bytes, so that Inductor writes all pieces in place instead of copying them together.
        row = [pair - byte.to(torch.int32) for pair, byte in zip(row, low, strict=True)]
    return low + [(pair >> 16).to(torch.uint8) for pair in row]
