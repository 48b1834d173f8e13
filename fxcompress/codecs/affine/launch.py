"""Launches of the affine kernels: which codecs and tensors they take, and the constants of each."""

from dataclasses import dataclass

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxcompress.codecs.affine import decode_kernel, kernel
from fxcompress.codecs.affine.codec import Affine
from fxcompress.codecs.groups import reciprocal
from fxcompress.codecs.lowering import Launch, signed
from fxcompress.codecs.runs import RUN, lanes
from fxcompress.errors import OptionError

WARPS = 4
"""Triton's default; a graph node could not carry another number."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Shares:
    """How much one thread does.

    Attributes:
        encode: elements of one group, at most; all of them share the cost of the metadata.
        decode: elements in all; the more, the fewer addresses per element.
    """

    encode: int
    decode: int = 16


def shares_of(codec: Affine) -> Shares:
    """The fastest on an H200 for 2, 4 and 8 bits of bf16 (`bench.device`, section `tune`), but for 2 bits in groups of
    64: there 32 elements per thread are 3 % faster and take more than 12 instructions each, for which other cards have
    less time."""
    return Shares(encode=64 if codec.bits < 4 else 32)


def refuse(codec: Affine, cols: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot do what `codec` does, or empty."""
    if dtype not in DTYPES:
        return f"the affine kernels take fp32, bf16 and fp16, not {dtype}"
    if codec.heads:
        return "the affine kernels take groups that are contiguous, not heads"
    if not lanes(codec.bits, codec.group, RUN):
        return f"the affine kernels take groups of a power of two from {max(16, 64 // codec.bits)} to 2048"
    return ""


def encode(codec: Affine, x: torch.Tensor, salt: int, *, shares: Shares | None = None) -> Launch:
    """`[*lead, cols]` → (codes, word)."""
    x = x.contiguous()
    *lead, cols = x.shape
    codes, word = (x.new_empty((*lead, *field.shape), dtype=field.dtype) for field in codec.fields(cols, x.dtype))
    aligned = cols % RUN == 0 and statically_known_true(x.storage_offset() * x.itemsize % 16 == 0)
    constants = encode_constants(codec, cols % codec.group != 0, aligned, shares)
    return Launch(
        kernel=kernel.encode,
        programs=_programs(word.numel(), constants),
        inputs={"x_ptr": x},
        outputs={"codes_ptr": codes, "word_ptr": word},
        numbers={"n_groups": word.numel(), "cols": cols, "salt": signed(salt)},
        constants=constants,
    )


def decode(
    codec: Affine, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype, *, shares: Shares | None = None
) -> Launch:
    """(codes, word) → `[*lead, cols]` of `dtype`."""
    codes, word = (part.contiguous() for part in parts)
    y = codes.new_empty((*word.shape[:-1], cols), dtype=dtype)
    constants = decode_constants(codec, cols % codec.group != 0, cols % RUN == 0, shares)
    return Launch(
        kernel=decode_kernel.decode,
        programs=_programs(word.numel(), constants),
        inputs={"codes_ptr": codes, "word_ptr": word},
        outputs={"y_ptr": y},
        numbers={"n_groups": word.numel(), "cols": cols},
        constants=constants,
    )


def encode_constants(codec: Affine, ragged: bool, vector: bool, shares: Shares | None = None) -> dict[str, object]:
    """Compile-time parameters of the encode kernel."""
    steps = 2**codec.bits - (2 if codec.zero_preserving else 1)
    shared = lanes(codec.bits, codec.group, (shares or shares_of(codec)).encode)
    return {
        **_constants(codec, ragged, vector),
        "STOCHASTIC": codec.rounding == "stochastic",
        "RECIPROCAL": reciprocal(steps),
        "LANES": shared,
        "TILE": WARPS * 32 // shared,
    }


def decode_constants(codec: Affine, ragged: bool, vector: bool, shares: Shares | None = None) -> dict[str, object]:
    """Compile-time parameters of the decode kernel."""
    tile = max(1, WARPS * 32 * (shares or shares_of(codec)).decode // codec.group)
    return {**_constants(codec, ragged, vector), "TILE": tile, "THREADS": WARPS * 32}


def _constants(codec: Affine, ragged: bool, vector: bool) -> dict[str, object]:
    return {
        "BITS": codec.bits,
        "GROUP": codec.group,
        "ZERO_PRESERVING": codec.zero_preserving,
        "VECTOR": vector,
        "RAGGED": ragged,
    }


def _programs(groups: int, constants: dict[str, object]) -> int:
    if isinstance(groups, int) and groups >= 2**31:
        raise OptionError(f"affine: {groups} groups in one tensor; the kernels count them in 31 bits")
    tile = int(str(constants["TILE"]))
    return (groups + tile - 1) // tile
