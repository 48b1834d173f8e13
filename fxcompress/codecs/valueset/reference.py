"""Exact integer codes in traceable ATen, split into pieces whose widths fill bytes evenly (11 bits = 8 + 2 + 1)."""

import torch

from fxcompress.codecs import bitpack, planes

BLOCK = 64
"""Elements per half-split block; a row's last block is filled up with code 0."""


def widths(bits: int) -> tuple[int, ...]:
    """Widths of the pieces that hold `bits` bits, from the low bits up."""
    return (8,) * (bits // 8) + tuple(width for width in (4, 2, 1) if bits % 8 & width)


def encode(
    x: torch.Tensor, lo: int, step: int, bits: int, wide: torch.dtype, slab: int = 0
) -> tuple[torch.Tensor, ...]:
    """Codes (x - lo)/step of `[*lead, cols]`.

    Args:
        x: bool, integer or floating point; every value is lo + step·k with 0 ≤ k < 2^bits.
        lo: the value of code 0.
        step: distance of neighbouring values.
        bits: bits per code.
        wide: integer dtype that holds every value and every code.
        slab: elements of a slab; 0: blocks instead.

    Returns:
        One uint8 `[*lead, blocks, 8·width]` per piece; of slabs `[*lead, slabs·width/8, slab]`.
    """
    *lead, cols = x.shape
    if slab:
        x = x.reshape(*lead, cols // slab, slab)
    codes = x.to(wide)
    if lo:
        codes = codes - lo
    if step > 1:
        codes = torch.div(codes, step, rounding_mode="floor")
    if not slab:
        codes = _in_blocks(codes)
    pieces = []
    at = 0
    for width in widths(bits):
        piece = ((codes >> at if at else codes) & (2**width - 1)).to(torch.int32)
        pieces.append(bitpack.pack_slabs(piece, width) if slab else bitpack.pack(piece, width))
        at += width
    return tuple(pieces)


def _in_blocks(codes: torch.Tensor) -> torch.Tensor:
    """`[*lead, cols]` → `[*lead, blocks, 64]`, the last one filled up with zeros."""
    *lead, cols = codes.shape
    missing = -cols % BLOCK
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    return codes.reshape(*lead, (cols + missing) // BLOCK, BLOCK)


def decode(
    pieces: tuple[torch.Tensor, ...],
    lo: int,
    step: int,
    bits: int,
    cols: int,
    dtype: torch.dtype,
    wide: torch.dtype,
    slab: int = 0,
) -> torch.Tensor:
    """Inverse of `encode`: `[*lead, cols]` of `dtype`."""
    several = len(pieces) > 1
    at = 0
    parts = []
    for piece, width in zip(pieces, widths(bits), strict=True):
        if slab:
            part = bitpack.unpack_slabs(piece, width).to(wide)
            parts.append(part << at if at else part)
        else:
            part = bitpack.unpack(piece, width).to(wide)
            parts.append(part.flatten(-2) << at if several else part)
        at += width
    codes = planes.merge(parts)
    values = codes * step + lo if (lo, step) != (0, 1) else codes
    if dtype == torch.bool:
        values = values != 0  # on a CPU, Inductor's cast to bool is slower
    if slab:
        return values.to(dtype).flatten(-2)
    # Planes of pieces have different lengths: then only the codes of a whole block are in one order.
    rows = values.to(dtype).flatten(-2 if several else -3)
    return rows if cols == rows.shape[-1] else rows[..., :cols]
