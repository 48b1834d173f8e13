"""Launches of the block2d kernels: which maps they take, and the constants of each."""

import torch

from fxcompress.codecs.affine.launch import DTYPES, WARPS
from fxcompress.codecs.block2d import kernel
from fxcompress.codecs.block2d.codec import Block2d
from fxcompress.codecs.groups import reciprocal
from fxcompress.codecs.lowering import Launch, aligned, signed
from fxcompress.errors import OptionError

SIDE = 8
TILE = WARPS * 32


def refuse(codec: Block2d, cols: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot do what `codec` does, or empty."""
    if dtype not in DTYPES:
        return f"the block2d kernels take fp32, bf16 and fp16, not {dtype}"
    if codec.inner != 1 or codec.block != SIDE or codec.height % SIDE or codec.width % SIDE:
        return f"the block2d kernels take contiguous maps in cells of {SIDE} x {SIDE} that fit evenly"
    return ""


def encode(codec: Block2d, x: torch.Tensor, salt: int) -> Launch:
    """`[*lead, cols]` → (codes, word)."""
    x = aligned(x)
    *lead, cols = x.shape
    codes, word = (x.new_empty((*lead, *field.shape), dtype=field.dtype) for field in codec.fields(cols, x.dtype))
    return Launch(
        kernel=kernel.encode,
        programs=_programs(word.numel()),
        inputs={"x_ptr": x},
        outputs={"codes_ptr": codes, "word_ptr": word},
        numbers={**_numbers(codec, word), "salt": signed(salt)},
        constants=encode_constants(codec),
    )


def decode(codec: Block2d, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> Launch:
    """(codes, word) → `[*lead, cols]` of `dtype`."""
    codes, word = (part.contiguous() for part in parts)
    y = codes.new_empty((*word.shape[:-1], cols), dtype=dtype)
    return Launch(
        kernel=kernel.decode,
        programs=_programs(word.numel()),
        inputs={"codes_ptr": codes, "word_ptr": word},
        outputs={"y_ptr": y},
        numbers=_numbers(codec, word),
        constants=decode_constants(codec),
    )


def encode_constants(codec: Block2d) -> dict[str, object]:
    """Compile-time parameters of the encode kernel."""
    steps = 2**codec.bits - (2 if codec.zero_preserving else 1)
    stochastic = codec.rounding == "stochastic"
    return {**decode_constants(codec), "STOCHASTIC": stochastic, "RECIPROCAL": reciprocal(steps)}


def decode_constants(codec: Block2d) -> dict[str, object]:
    """Compile-time parameters of the decode kernel."""
    return {"BITS": codec.bits, "KEEPS": int(codec.zero_preserving), "TILE": TILE}


def _numbers(codec: Block2d, word: torch.Tensor) -> dict[str, int]:
    return {"n_cells": word.numel(), "down": codec.height // SIDE, "across": codec.width // SIDE}


def _programs(cells: int) -> int:
    if isinstance(cells, int) and cells >= 2**31:
        raise OptionError(f"block2d: {cells} cells in one tensor; the kernels count them in 31 bits")
    return (cells + TILE - 1) // TILE
