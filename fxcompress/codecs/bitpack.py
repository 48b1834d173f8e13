"""Packing small codes into bytes, half-split inside a block: packing and unpacking are shifts of contiguous runs.

A block of G codes of b bits becomes H = G·b/8 bytes, and byte j holds the codes j, j+H, j+2H, … from its low bits up.
Interleaved packing would need a shuffle across vector lanes (GPU: shared memory) on both sides.
"""

import torch

from fxcompress.codecs import planes
from fxcompress.codecs.noise import CALL

WIDTHS = (1, 2, 4, 8)
"""Code widths that fill a byte evenly."""
_FIXED = 0x4B000000
"""Bits of 2²³ as fp32."""


def _shifts(bits: int, device: torch.device) -> torch.Tensor:
    """int32 `[8/bits, 1]`: the bit position of each of a byte's codes."""
    return torch.arange(0, 8, bits, dtype=torch.int32, device=device)[:, None]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 codes `[*lead, blocks, G]`, each below 2^bits → uint8 `[*lead, blocks, G·bits/8]`."""
    if bits == 8:
        return codes.to(torch.uint8)
    if planes.wanted(codes):
        parts = zip(range(0, 8, bits), planes.unbind(codes, 8 // bits), strict=True)
        return planes.merge([part << at if at else part for at, part in parts]).to(torch.uint8)
    placed: torch.Tensor = planes.split(codes, 8 // bits) << _shifts(bits, codes.device)
    merged: torch.Tensor = placed.sum(-2, dtype=torch.int32)
    return merged.to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 `[*lead, blocks, H]` → int32 codes `[*lead, blocks, p, G/p]`, to be reshaped to rows last, after casting.

    p is 1 on a CPU, which wants long vectors, and 8/bits on a GPU: Inductor takes its indices from the last shape but
    views. With planes in it a code's byte is column mod H, without them column mod G mod H, and Triton loads single
    bytes.
    """
    wide = packed.to(torch.int32)[..., None, :]
    if bits == 8:
        return wide
    codes: torch.Tensor = (wide >> _shifts(bits, packed.device)) & (2**bits - 1)
    return codes if planes.wanted(packed) else codes.reshape(*packed.shape[:-1], 1, packed.shape[-1] * 8 // bits)


def pack_slabs(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 codes `[*lead, n, slab]` → uint8 `[*lead, n·bits/8, slab]`: half-split across slabs, of which 8/bits share
    bytes; n a multiple of 8."""
    count, slab = codes.shape[-2:]
    parts = codes.reshape(*codes.shape[:-2], 8 // bits, count * bits // 8, slab).unbind(-3)
    # A sum over them would stand in memory as int32, four times the payload.
    return planes.merge([part << at if at else part for at, part in zip(range(0, 8, bits), parts, strict=True)]).to(
        torch.uint8
    )


def unpack_slabs(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Inverse of `pack_slabs`."""
    shifted = packed.to(torch.int32)[..., None, :, :] >> _shifts(bits, packed.device)[..., None]
    codes: torch.Tensor = shifted & (2**bits - 1)
    return codes.flatten(-3, -2)


def unpack_real(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """As `unpack`, in fp32.

    On a GPU codes stay where they are in the byte: as bits of an fp32 at 2²³ an exact product brings them down, which
    costs integer units, the scarce ones, one operation less. On an H200 (rows of `bench.device`, commit de206bd, "in
    place" and "as it is") a decode alone reached 0.92 of a copy's speed at 2 bit and 0.94 at 4 bit, with shifts 0.89
    and 0.87.
    """
    if bits == 8 or not planes.wanted(packed):
        return unpack(packed, bits).to(torch.float32)
    shifts = _shifts(bits, packed.device)
    placed = packed.to(torch.int32)[..., None, :] & ((2**bits - 1) << shifts) | _FIXED
    codes: torch.Tensor = (placed.view(torch.float32) - 2.0**23) * ((127 - shifts) << 23).view(torch.float32)
    return codes


def pack_dithered(fixed: torch.Tensor, noise: tuple[torch.Tensor, ...], bits: int) -> torch.Tensor:
    """Add one noise byte to each fixed-point code, drop the fraction, pack.

    Args:
        fixed: int32 `[*lead, groups, G]`, codes times 256.
        noise: `noise.words`, four int32 `[*lead, groups, G/16]`.
        bits: code width.

    Returns:
        uint8 `[*lead, groups, G·bits/8]`, laid out as by `pack`.
    """
    added = spread(noise, compact=bits < 8)
    return pack((fixed + added) >> 8, bits)


def spread(noise: tuple[torch.Tensor, ...], *, compact: bool) -> torch.Tensor:
    """`noise.words` as one byte per element, int32 `[*lead, groups, G]`; `compact` is a way to it, not a result.

    Measured with Inductor on a CPU: the compact way takes 2/3 of the other's time where codes share bytes, and 3/2
    where they do not.
    """
    if compact:
        calls = torch.stack(noise, -1)
        halves = calls.reshape(*calls.shape[:-1], 2, 2).movedim(-2, -3)
    else:
        halves = torch.stack([torch.stack(noise[:2], -1), torch.stack(noise[2:], -1)], -3)
    places = torch.arange(0, 32, 8, dtype=torch.int32, device=halves.device)
    added: torch.Tensor = (halves[..., None] >> places) & 0xFF
    return added.reshape(*noise[0].shape[:-1], noise[0].shape[-1] * CALL)
