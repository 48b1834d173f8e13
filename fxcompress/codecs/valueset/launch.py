"""Launches of the mask kernels."""

import torch

from fxcompress.codecs.lowering import Launch
from fxcompress.codecs.valueset import kernel
from fxcompress.codecs.valueset.codec import Valueset
from fxcompress.codecs.valueset.reference import BLOCK
from fxcompress.errors import OptionError

THREADS = 128
ENCODE_TILE = 128
DECODE_TILE = 64
"""Blocks per program."""


def refuse(codec: Valueset, cols: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot do what `codec` does, or empty."""
    if dtype != torch.bool or codec.count != 2:
        return f"the valueset kernels take booleans, not {codec.count} values of {dtype}"
    if codec.slab:
        return "the valueset kernels store blocks, not slabs"
    return f"the valueset kernels take rows of a multiple of {BLOCK}, not {cols}" if cols % BLOCK else ""


def encode(codec: Valueset, x: torch.Tensor, salt: int, *, tile: int = ENCODE_TILE) -> Launch:
    """bool `[*lead, cols]` → (p0,)."""
    bits = x.new_empty((*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK // 8), dtype=torch.uint8)
    return Launch(
        kernel=kernel.encode,
        programs=_programs(bits, tile),
        inputs={"x_ptr": x.contiguous()},
        outputs={"bits_ptr": bits},
        numbers={"n_blocks": bits.numel() // 8},
        constants={"TILE": tile},
    )


def decode(
    codec: Valueset, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype, *, tile: int = DECODE_TILE
) -> Launch:
    """(p0,) → bool `[*lead, cols]`."""
    (bits,) = parts
    y = bits.new_empty((*bits.shape[:-2], cols), dtype=dtype)
    return Launch(
        kernel=kernel.decode,
        programs=_programs(bits, tile),
        inputs={"bits_ptr": bits.contiguous()},
        outputs={"y_ptr": y},
        numbers={"n_blocks": bits.numel() // 8},
        constants={"TILE": tile, "THREADS": THREADS},
    )


def _programs(bits: torch.Tensor, tile: int) -> int:
    blocks = bits.numel() // 8
    if isinstance(blocks, int) and blocks >= 2**31:
        raise OptionError(f"valueset: {blocks} blocks in one tensor; the kernels count them in 31 bits")
    return (blocks + tile - 1) // tile
