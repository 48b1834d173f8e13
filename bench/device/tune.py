"""Which shares of work per thread, and which form of a decode in ATen, come nearest to a copy's speed?

What the machine code shows leaves these open. The winners are the constants of `codecs.affine.launch` and
`codecs.valueset.launch`, and the form in `codecs.bitpack`. `ok` says that a result is right bit for bit.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bench.compat import inductor_settings
from bench.device.bandwidth import COLS, MIB, against_copy, rows_of
from bench.device.codecs import SALT, Parts, lowered
from bench.device.section import Cases, Measured, Scale, need_cuda
from fxcompress import codecs
from fxcompress.codecs import lowering
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.valueset import Valueset

Form = Literal["as it is", "one dimension"]
_FORMS: tuple[Form, ...] = ("as it is", "one dimension")
"""The second forbids Inductor tiles of groups and columns, which torch 2.11 makes of a decode alone."""
Side = Literal["encode", "decode"]
_BYTES = 256 * MIB
_CHECKED = 16
"""Rows that are compared with the reference."""
_FOUR, _EIGHT, _TWO = Affine(4), Affine(8, rounding="nearest"), Affine(2)
_AFFINE: tuple[tuple[Side, Affine, torch.dtype, tuple[int, ...]], ...] = (
    ("encode", _FOUR, torch.bfloat16, (32, 64, 16)),
    ("encode", _EIGHT, torch.bfloat16, (32, 64, 16)),
    ("encode", _TWO, torch.bfloat16, (64, 32)),
    ("decode", _FOUR, torch.bfloat16, (32, 16, 8)),
    ("decode", _TWO, torch.bfloat16, (32, 16, 8)),
    ("decode", _EIGHT, torch.bfloat16, (32, 16)),
    ("decode", _FOUR, torch.float32, (32, 16)),
    ("decode", Affine(4, group=32), torch.bfloat16, (32, 16)),
    ("encode", _FOUR, torch.float32, (32, 64)),
    ("encode", Affine(2, group=256), torch.bfloat16, (32, 64)),
)
"""Elements per thread: of one group for an encode, in all for a decode."""


def cases(scale: Scale) -> Cases:
    """Forms in ATen, then launches of the kernels, those of the default widths first."""
    found: dict[str, Callable[[], Measured]] = {}
    for bits in (2, 4):
        for form in _FORMS:
            found[f"decode {bits} bit bfloat16 compiled {form}"] = functools.partial(
                time_form, Affine(bits), form, scale
            )
    found["decode mask compiled"] = functools.partial(time_mask_form, scale)
    for side, codec, dtype, counts in _AFFINE:
        kind = f"{codec.bits} bit G{codec.group} {codec.rounding} {str(dtype).removeprefix('torch.')}"
        for count in counts:
            name = f"{side} {kind} {count} per thread"
            found[name] = functools.partial(time_shares, side, codec, dtype, count, scale)
    for tile in (128, 64, 256):
        found[f"decode mask {tile} blocks per program"] = functools.partial(time_tile, tile, scale)
    return found


def time_shares(side: Side, codec: Affine, dtype: torch.dtype, count: int, scale: Scale) -> Measured:
    """One side of the affine kernels with `count` elements per thread."""
    need_cuda(scale)
    from fxcompress.codecs.affine import launch

    x = rows_of(codec, dtype, _BYTES, scale)
    shares = launch.Shares(encode=count) if side == "encode" else launch.Shares(encode=64, decode=count)
    parts = lowering.perform(launch.encode(codec, x, SALT, shares=shares))

    def decode() -> Parts:
        return lowering.perform(launch.decode(codec, parts, COLS, dtype, shares=shares))

    if side == "decode":
        ok = torch.equal(decode()[0][:_CHECKED], _expected(codec, parts, dtype))
        return {**against_copy(decode, codec, x, scale), "ok": ok}
    wanted = codec.encode(x[:_CHECKED], SALT)
    ok = all(torch.equal(part[:_CHECKED], one) for part, one in zip(parts, wanted, strict=True))
    measured = against_copy(lambda: lowering.perform(launch.encode(codec, x, SALT, shares=shares)), codec, x, scale)
    return {**measured, "ok": ok}


def time_tile(tile: int, scale: Scale) -> Measured:
    """The decode of a mask with so many blocks per program."""
    need_cuda(scale)
    from fxcompress.codecs.valueset import launch

    codec = Valueset()
    x = rows_of(codec, torch.bool, _BYTES, scale)
    parts = codec.encode(x, SALT)

    def decode() -> Parts:
        return lowering.perform(launch.decode(codec, parts, COLS, torch.bool, tile=tile))

    return {**against_copy(decode, codec, x, scale), "ok": torch.equal(decode()[0], x)}


def time_mask_form(scale: Scale) -> Measured:
    """The decode of a mask as Inductor makes it."""
    codec = codecs.make("valueset")
    x = rows_of(codec, torch.bool, _BYTES, scale)
    _, decode = lowered(codec, COLS, torch.bool, "compiled", scale)
    parts = codec.encode(x, SALT)
    return {**against_copy(lambda: decode(parts), codec, x, scale), "ok": torch.equal(decode(parts), x)}


def time_form(codec: Affine, form: Form, scale: Scale) -> Measured:
    """A decode as Inductor makes it from one form or another."""
    dtype = torch.bfloat16
    x = rows_of(codec, dtype, _BYTES, scale)
    parts = codec.encode(x, SALT)
    _, decode = lowered(codec, COLS, dtype, "compiled", scale)
    with inductor_settings({"triton.coalesce_tiling_analysis": form != "one dimension"}):
        ok = torch.equal(decode(parts)[:_CHECKED], _expected(codec, parts, dtype))
    return {**against_copy(lambda: decode(parts), codec, x, scale), "ok": ok}


def _expected(codec: Affine, parts: Parts, dtype: torch.dtype) -> Tensor:
    return codec.decode(tuple(part[:_CHECKED] for part in parts), COLS, dtype)
