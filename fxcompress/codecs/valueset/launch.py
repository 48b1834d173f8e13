"""Launches of the mask kernels."""

import torch

from fxcompress.codecs.lowering import Launch
from fxcompress.codecs.valueset import kernel
from fxcompress.codecs.valueset.codec import Valueset
from fxcompress.codecs.valueset.reference import BLOCK
from fxcompress.errors import OptionError

TILE = 128


def refuse(codec: Valueset, cols: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot do what `codec` does, or empty."""
    if dtype != torch.bool or codec.count != 2:
        return f"the valueset kernels take booleans, not {codec.count} values of {dtype}"
    return f"the valueset kernels take rows of a multiple of {BLOCK}, not {cols}" if cols % BLOCK else ""


def encode(codec: Valueset, x: torch.Tensor, salt: int) -> Launch:
    """bool `[*lead, cols]` → (p0,)."""
    bits = x.new_empty((*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK // 8), dtype=torch.uint8)
    return _launch(kernel.encode, {"x_ptr": x.contiguous()}, {"bits_ptr": bits}, bits.numel() // 8)


def decode(codec: Valueset, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> Launch:
    """(p0,) → bool `[*lead, cols]`."""
    (bits,) = parts
    y = bits.new_empty((*bits.shape[:-2], cols), dtype=dtype)
    return _launch(kernel.decode, {"bits_ptr": bits.contiguous()}, {"y_ptr": y}, bits.numel() // 8)


def _launch(function: object, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor], blocks: int) -> Launch:
    if isinstance(blocks, int) and blocks >= 2**31:
        raise OptionError(f"valueset: {blocks} blocks in one tensor; the kernels count them in 31 bits")
    programs = (blocks + TILE - 1) // TILE
    return Launch(function, programs, inputs, outputs, {"n_blocks": blocks}, {"TILE": TILE})
