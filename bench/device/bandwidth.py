"""How near to a copy's speed do encodes and decodes run?

Bytes are those that must move: the tensor once and its payload once. A copy of the same tensor is timed in the same
case, so that a share of the copy compares two numbers of one moment.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from bench import measure
from bench.device.codecs import Lowering, lowered
from bench.device.section import Cases, Measured, Scale
from fxcompress import codecs
from fxcompress.codecs.base import Codec, payload_nbytes
from fxcompress.testing import sample

MIB = 2**20
COLS = 4096
_WARM_MS, _RUN_MS = 10, 60
_TOY_BYTES = MIB // 4
_SEEDED = 2**20
"""Elements drawn at random; larger tensors repeat them, because only sizes matter here."""


def copy_cases(scale: Scale) -> Cases:
    """Copies of several sizes: the ceiling of everything that moves memory."""
    return {f"{mib} MiB": functools.partial(time_copy, mib * MIB, scale) for mib in (256, 1024, 64)}


def time_copy(nbytes: int, scale: Scale) -> Measured:
    """One copy of so many bytes; `bytes_per_s` counts them read and written."""
    x = torch.empty(_sized(nbytes, scale), dtype=torch.uint8, device=scale.device)
    y = torch.empty_like(x)
    seconds = seconds_of(lambda: y.copy_(x), scale)
    return {"seconds_s": seconds, "gb_per_s": 2e-9 * x.numel() / seconds}


def sweep_cases(scale: Scale) -> Cases:
    """Default widths in both lowerings first, then masks, other groups, sizes and dtypes of the kernels."""
    found: dict[str, Callable[[], Measured]] = {}

    def add(codec: Codec, what: str, dtype: torch.dtype, how: Lowering, mib: int) -> None:
        for side in ("encode", "decode"):
            name = f"{side} {what} {str(dtype).removeprefix('torch.')} {mib} MiB {how}"
            found[name] = functools.partial(time_codec, side, codec, dtype, how, mib * MIB, scale)

    both: tuple[Lowering, ...] = ("triton", "compiled")
    for how in both:
        for bits in (4,) if scale.toy else (4, 2, 8):
            add(_affine(bits), f"{bits} bit", torch.bfloat16, how, 256)
    if scale.toy:
        return found
    for how in both:
        add(codecs.make("valueset"), "mask", torch.bool, how, 256)
    for group in (32, 256):
        for bits in (2, 4):
            add(codecs.make("affine", bits=bits, group=group), f"{bits} bit G{group}", torch.bfloat16, "triton", 256)
    for mib in (16, 64, 1024):
        add(_affine(4), "4 bit", torch.bfloat16, "triton", mib)
    for dtype in (torch.float32, torch.float16):
        add(_affine(4), "4 bit", dtype, "triton", 256)
    return found


def time_codec(
    side: Literal["encode", "decode"], codec: Codec, dtype: torch.dtype, how: Lowering, nbytes: int, scale: Scale
) -> Measured:
    """Time one side of a codec and a copy of the same tensor."""
    x = rows_of(codec, dtype, nbytes, scale)
    encode, decode = lowered(codec, COLS, dtype, how, scale)
    parts = encode(x)
    return against_copy(lambda: encode(x) if side == "encode" else decode(parts), codec, x, scale)


def against_copy(call: Callable[[], Any], codec: Codec, x: Tensor, scale: Scale) -> Measured:
    """Time one side of a codec for rows `x`, and a copy of them."""
    seconds = seconds_of(call, scale)
    y = torch.empty_like(x)
    copy_s = seconds_of(lambda: y.copy_(x), scale)
    moved = x.numel() * x.itemsize + payload_nbytes(codec, len(x), COLS, x.dtype)
    rate, copy_rate = moved / seconds, 2 * x.numel() * x.itemsize / copy_s
    return {"seconds_s": seconds, "copy_s": copy_s, "gb_per_s": 1e-9 * rate, "of_copy": rate / copy_rate}


def rows_of(codec: Codec, dtype: torch.dtype, nbytes: int, scale: Scale) -> Tensor:
    """`[rows, COLS]` of so many bytes on the device, of values that `codec` takes."""
    count = _sized(nbytes, scale) // (COLS * dtype.itemsize)
    drawn = sample(codec, (min(count, _SEEDED // COLS), COLS), dtype).to(scale.device)
    return drawn.repeat(-(-count // len(drawn)), 1)[:count]


def seconds_of(function: Callable[[], Any], scale: Scale) -> float:
    """Median seconds of a call: on a GPU with a flushed cache, between events on its stream."""
    if scale.device == "cuda":
        from triton.testing import do_bench

        return 1e-3 * float(do_bench(function, warmup=_WARM_MS, rep=_RUN_MS, return_mode="median"))
    function()
    return sorted(measure.timed(function) for _ in range(3))[1]


def _affine(bits: int) -> Codec:
    """As `choose` makes it for this width."""
    return codecs.make("affine", bits=bits, rounding="nearest" if bits == 8 else "stochastic")


def _sized(nbytes: int, scale: Scale) -> int:
    return min(nbytes, _TOY_BYTES) if scale.toy else nbytes
