"""Launches of the dual kernels: which maps they take, and the constants of each."""

import torch

from fxcompress.codecs.affine.launch import DTYPES, WARPS
from fxcompress.codecs.dual import kernel
from fxcompress.codecs.dual.codec import Dual
from fxcompress.codecs.groups import reciprocal
from fxcompress.codecs.lowering import Launch, aligned, signed
from fxcompress.errors import OptionError

SIDE = 8
MOST_CELLS = WARPS * 32
"""Cells of a plane: a thread holds at most one."""


def refuse(codec: Dual, cols: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot do what `codec` does, or empty."""
    if dtype not in DTYPES:
        return f"the dual kernels take fp32, bf16 and fp16, not {dtype}"
    if codec.inner != 1 or codec.block != SIDE or codec.height % SIDE or codec.width % SIDE:
        return f"the dual kernels take contiguous maps in cells of {SIDE} x {SIDE} that fit evenly"
    if _cells(codec) > MOST_CELLS:
        return f"the dual kernels take planes of at most {MOST_CELLS} cells"
    # At one bit a scale can exceed 2¹²⁶, whose reciprocal is no normal number.
    return "the dual kernels take 2 and 4 bits" if codec.bits == 1 else ""


def encode(codec: Dual, x: torch.Tensor, salt: int) -> Launch:
    """`[*lead, cols]` → (means, codes, word)."""
    x = aligned(x)
    *lead, cols = x.shape
    means, codes, word = (
        x.new_empty((*lead, *field.shape), dtype=field.dtype) for field in codec.fields(cols, x.dtype)
    )
    constants = encode_constants(codec)
    return Launch(
        kernel=kernel.encode,
        programs=_programs(word.numel(), constants),
        inputs={"x_ptr": x},
        outputs={"means_ptr": means, "codes_ptr": codes, "word_ptr": word},
        numbers={**_numbers(codec, word), "salt": signed(salt)},
        constants=constants,
    )


def decode(codec: Dual, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> Launch:
    """(means, codes, word) → `[*lead, cols]` of `dtype`."""
    means, codes, word = (part.contiguous() for part in parts)
    y = codes.new_empty((*word.shape[:-1], cols), dtype=dtype)
    constants = decode_constants(codec)
    return Launch(
        kernel=kernel.decode,
        programs=_programs(word.numel(), constants),
        inputs={"means_ptr": means, "codes_ptr": codes, "word_ptr": word},
        outputs={"y_ptr": y},
        numbers=_numbers(codec, word),
        constants=constants,
    )


def encode_constants(codec: Dual) -> dict[str, object]:
    """Compile-time parameters of the encode kernel."""
    return {
        **decode_constants(codec),
        "STOCHASTIC": codec.rounding == "stochastic",
        "RECIPROCAL": reciprocal(2**codec.bits - 1),
        "CELLS": _power(_cells(codec)),
    }


def decode_constants(codec: Dual) -> dict[str, object]:
    """Compile-time parameters of the decode kernel."""
    cells = _cells(codec)
    return {"BITS": codec.bits, "PLANES": MOST_CELLS // _power(cells), "RUNS": _power(cells * codec.bits)}


def _cells(codec: Dual) -> int:
    return codec.height * codec.width // SIDE**2


def _power(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def _numbers(codec: Dual, word: torch.Tensor) -> dict[str, int]:
    return {"n_planes": word.numel(), "down": codec.height // SIDE, "across": codec.width // SIDE}


def _programs(planes: int, constants: dict[str, object]) -> int:
    if isinstance(planes, int) and planes >= 2**24:
        raise OptionError(f"dual: {planes} planes in one tensor; the kernels count their cells in 31 bits")
    each = int(str(constants["PLANES"]))
    return (planes + each - 1) // each
