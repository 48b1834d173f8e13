"""Codecs as opaque operators, for compilers whose cost grows with every kernel they generate.

    torch.ops.fxcompress.encode(x, 0, describe(codec), salt)            # payload tensors
    torch.ops.fxcompress.decode(parts, [32, 64], describe(codec), dtype)  # dense [*lead, 32, 64]

Bit for bit what `codec.encode` and `codec.decode` compute. The first run compiles the codec's own ATen with Inductor
for any number of rows, so that all tensors of a process that one codec stores share two kernels, whatever their sizes:
a graph that inlines its codecs has two per tensor. CPU only; where fusion with the neighbours is what makes a codec
fast, codecs belong into the graph.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence

import torch

from fxcompress import codecs, compat
from fxcompress.codecs.base import Codec

_ROWS = 4096
"""Rows of the example that kernels are compiled for: enough that they run in parallel."""
Parts = list[torch.Tensor]
Kernel = Callable[[Parts], Sequence[torch.Tensor]]
"""Takes the tensors as one list, which it empties."""
RowFunction = Callable[..., tuple[torch.Tensor, ...]]


def describe(codec: Codec) -> str:
    """The codec as text that names it in a graph, in this process and in others."""
    return json.dumps({"name": codec.name, **codecs.params(codec)}, sort_keys=True)


@functools.cache
def read(text: str) -> Codec:
    """The codec that `describe` named."""
    return codecs.make(**json.loads(text))


_library = torch.library.Library("fxcompress", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("encode(Tensor x, int lead, str codec, int salt) -> Tensor[]")  # type: ignore[no-untyped-call]
_library.define("decode(Tensor[] parts, int[] tail, str codec, ScalarType dtype) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "encode", "CPU")
def _encode(x: torch.Tensor, lead: int, codec: str, salt: int) -> Parts:
    """Store `x` as `[*x.shape[:lead], cols]`, its other dimensions one row in memory order: a view if `x` is dense."""
    method, cols = read(codec), math.prod(x.shape[lead:])
    width = row_width(method, cols)
    # The number of rows is stated, for -1 says nothing about a tensor without elements.
    rows = x.reshape(x.numel() // width, width).contiguous()
    parts = _kernel("encode", codec, width, x.dtype, _fixed_rows(method, width, rows))([rows, torch.tensor(salt)])
    fields = method.fields(cols, x.dtype)
    return [part.reshape(*x.shape[:lead], *field.shape) for part, field in zip(parts, fields, strict=True)]


@torch.library.impl(_library, "decode", "CPU")
def _decode(parts: Parts, tail: list[int], codec: str, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of `encode`: `[*lead, *tail]` of `dtype`, contiguous."""
    method, cols = read(codec), math.prod(tail)
    width = row_width(method, cols)
    lead = _lead(parts, method, cols, dtype)
    count = math.prod(lead) * (cols // width)
    rows = [part.reshape(count, *field.shape) for part, field in zip(parts, method.fields(width, dtype), strict=True)]
    (values,) = _kernel("decode", codec, width, dtype, _fixed_rows(method, width, rows[0]))(rows)
    return values.reshape(*lead, *tail).contiguous()


@torch.library.register_fake("fxcompress::encode", lib=_library)  # type: ignore[untyped-decorator]
def _fake_encode(x: torch.Tensor, lead: int, codec: str, salt: int) -> Parts:
    fields = read(codec).fields(math.prod(x.shape[lead:]), x.dtype)
    return [x.new_empty((*x.shape[:lead], *field.shape), dtype=field.dtype) for field in fields]


@torch.library.register_fake("fxcompress::decode", lib=_library)  # type: ignore[untyped-decorator]
def _fake_decode(parts: Parts, tail: list[int], codec: str, dtype: torch.dtype) -> torch.Tensor:
    lead = _lead(parts, read(codec), math.prod(tail), dtype)
    return parts[0].new_empty((*lead, *tail), dtype=dtype)


def _lead(parts: Sequence[torch.Tensor], codec: Codec, cols: int, dtype: torch.dtype) -> Sequence[int]:
    return parts[0].shape[: parts[0].dim() - len(codec.fields(cols, dtype)[0].shape)]


def row_width(codec: Codec, cols: int) -> int:
    """Elements of the rows that kernels see: a period of the codec where rows of `cols` elements are whole ones."""
    return codec.period if codec.period and cols % codec.period == 0 else cols


def _fixed_rows(codec: Codec, width: int, rows: torch.Tensor) -> int | None:
    """The number of rows to compile for: None, which is any, but for a tensor that is one long row."""
    return None if width == codec.period or len(rows) != 1 else 1


@functools.cache
def _kernel(way: str, codec: str, width: int, dtype: torch.dtype, rows: int | None) -> Kernel:
    """Compiled `[n, width]` and salt → payload, or payload → `[n, width]`; for any n if `rows` is None."""
    _follow_compile_caches()
    function, examples = row_function(way, codec, width, dtype, _ROWS if rows is None else rows)
    return compat.compile_for_rows(function, examples, dynamic=rows is None)


def row_function(way: str, codec: str, width: int, dtype: torch.dtype, rows: int) -> tuple[RowFunction, Parts]:
    """What an operator compiles, `encode(x, salt)` or `decode(*parts)`, with arguments of `rows` rows."""
    method = read(codec)
    if way == "encode":
        return lambda x, salt: method.encode(x, salt), [torch.empty(rows, width, dtype=dtype), torch.tensor(0)]
    examples = [torch.empty(rows, *field.shape, dtype=field.dtype) for field in method.fields(width, dtype)]
    return lambda *parts: (method.decode(parts, width, dtype),), examples


@functools.cache
def _follow_compile_caches() -> None:
    """A fresh compile cache is without our kernels too: who measures compile times relies on it."""
    compat.clear_with_compile_caches(_kernel)
