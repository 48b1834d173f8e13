"""What encoding costs next to the work that it is fused with: GELU and its derivative, and that of a batch norm.

`ratio` is the time of the pair with the codec over the time without: GELU that also saves its argument encoded over
GELU alone, and the derivative computed from the payload over the derivative computed from the tensor. All are compiled
with the settings that our graphs get.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.device.bandwidth import COLS, MIB, rows_of, seconds_of
from bench.device.codecs import SALT, lowered
from bench.device.section import Cases, Measured, Scale, need_cuda
from fxcompress import codecs
from fxcompress.codecs import lowering
from fxcompress.codecs.base import Codec, payload_nbytes
from fxcompress.codecs.chains import Chain
from fxcompress.passes.realize import FOR_GPU

BYTES = 256 * MIB
DTYPE = torch.bfloat16
_GELU = Chain(
    inputs=("x",),
    steps=(
        ("half", "x * 0.5"),
        ("scaled", "x * 0.7071067811865476"),
        ("erf", "libdevice.erf(scaled)"),
        ("sum", "erf + 1.0"),
        ("y", "half * sum"),
    ),
    stored=("y",),
    encoded=("x",),
)


def cases(scale: Scale) -> Cases:
    """All pairs at every width, GELU followed by the hand-written kernel, and one kernel of ours for both."""
    found: dict[str, Callable[[], Measured]] = {}
    for bits in (2,) if scale.toy else (2, 4, 8):
        codec = codecs.make("affine", bits=bits, rounding="nearest" if bits == 8 else "stochastic")
        for name, measured in (
            ("gelu + save", time_save),
            ("decode + gelu backward", time_derivative),
            ("gelu, then kernel", time_kernel),
            ("gelu + save, one kernel", time_chain),
            ("decode + batch norm backward", time_sums),
        ):
            found[f"{name} {bits} bit"] = functools.partial(measured, codec, scale)
    return found


def time_save(codec: Codec, scale: Scale) -> Measured:
    """GELU and encode of its argument, compiled together."""
    x = rows_of(codec, DTYPE, BYTES, scale)
    both = _compiled(lambda x: (F.gelu(x), *codec.encode(x, SALT)), scale)
    return _compared(lambda: both(x), _gelu(x, scale), _payload(codec, x), 2 * x.nbytes, scale)


def time_kernel(codec: Codec, scale: Scale) -> Measured:
    """GELU, then the encode kernel, which reads the argument once more."""
    x = rows_of(codec, DTYPE, BYTES, scale)
    encode, _ = lowered(codec, COLS, DTYPE, "triton", scale)
    alone = _gelu(x, scale)
    return _compared(lambda: (alone(), encode(x)), alone, x.nbytes + _payload(codec, x), 2 * x.nbytes, scale)


def time_chain(codec: Codec, scale: Scale) -> Measured:
    """The kernel that `fuse` writes for GELU and the encode of its argument. `ok`: it stores what GELU alone does, and
    the bits of the encode by itself."""
    need_cuda(scale)
    x = rows_of(codec, DTYPE, BYTES, scale)
    flat, alone = x.view(-1), _gelu(x, scale)

    def both() -> tuple[Tensor, ...]:
        return lowering.encode_chain(_GELU, [codec], [flat], [DTYPE])

    kernels = lowering.find(codec, COLS, DTYPE)
    assert kernels is not None
    y, *parts = both()
    wanted = kernels.encode(x, 0)
    equal = torch.equal(y.view_as(x), alone())
    ok = equal and all(torch.equal(one, two.view_as(one)) for one, two in zip(parts, wanted, strict=True))
    return {"ok": ok, **_compared(both, alone, _payload(codec, x), 2 * x.nbytes, scale)}


def time_derivative(codec: Codec, scale: Scale) -> Measured:
    """GELU's derivative of the decoded argument, compiled together."""
    x = rows_of(codec, DTYPE, BYTES, scale)
    gradient = torch.ones_like(x)
    parts = codec.encode(x, SALT)

    def derivative(gradient: Tensor, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten.gelu_backward.default(gradient, x)
        return result

    plain = _compiled(derivative, scale)
    decoding = _compiled(lambda gradient, *parts: derivative(gradient, codec.decode(parts, COLS, DTYPE)), scale)
    added = _payload(codec, x) - x.nbytes
    return _compared(lambda: decoding(gradient, *parts), lambda: plain(gradient, x), added, 3 * x.nbytes, scale)


def time_sums(codec: Codec, scale: Scale) -> Measured:
    """The two sums over rows of a batch norm's derivative, one of the gradient times the decoded argument."""
    x = rows_of(codec, DTYPE, BYTES, scale)
    gradient = torch.ones_like(x)
    parts = codec.encode(x, SALT)

    def sums(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = gradient.float()
        return wide.sum(0), (wide * (x.float() - 1)).sum(0)

    plain = _compiled(sums, scale)
    decoding = _compiled(lambda gradient, *parts: sums(gradient, codec.decode(parts, COLS, DTYPE)), scale)
    added = _payload(codec, x) - x.nbytes
    return _compared(lambda: decoding(gradient, *parts), lambda: plain(gradient, x), added, 2 * x.nbytes, scale)


def _compared(
    function: Callable[[], Any], reference: Callable[[], Any], added_bytes: int, plain_bytes: int, scale: Scale
) -> Measured:
    """Times of both; `counted_ratio` is that of the bytes that they must move."""
    seconds, plain = seconds_of(function, scale), seconds_of(reference, scale)
    counted = (plain_bytes + added_bytes) / plain_bytes
    return {"seconds_s": seconds, "plain_s": plain, "ratio": seconds / plain, "counted_ratio": counted}


def _gelu(x: Tensor, scale: Scale) -> Callable[[], Any]:
    alone = _compiled(F.gelu, scale)
    return lambda: alone(x)


def _compiled(function: Callable[..., Any], scale: Scale) -> Callable[..., Any]:
    torch.compiler.reset()
    settings: dict[str, Any] | None = dict(FOR_GPU) if scale.inner == "inductor" else None
    compiled: Callable[..., Any] = torch.compile(function, backend=scale.inner, options=settings, dynamic=False)
    return compiled


def _payload(codec: Codec, x: Tensor) -> int:
    return payload_nbytes(codec, len(x), COLS, x.dtype)
