"""Is every codec on the device, in every lowering, bit for bit what it is on the CPU?

`eager`: its ATen operators one by one; `compiled`: the same through Inductor, as a training step gets them; `triton`:
the hand-written kernels.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bench.device.section import Cases, Measured, Scale, Skipped, need_cuda
from fxcompress import codecs
from fxcompress.codecs import lowering
from fxcompress.codecs.base import Codec
from fxcompress.testing import dtypes, examples, fitting, largest_error, sample

Lowering = Literal["eager", "compiled", "triton"]
Parts = tuple[Tensor, ...]
SALT = 2**31 + 7
COMPILED: tuple[tuple[str, dict[str, object]], ...] = (
    ("affine", {"bits": 4}),
    ("affine", {"bits": 8, "rounding": "nearest"}),
    ("affine", {"bits": 8, "rounding": "nearest", "zero_preserving": True}),
    ("valueset", {}),
    ("affine", {"bits": 2}),
    ("float8", {}),
    ("block2d", {"height": 12, "width": 10}),
    ("bounded", {}),
    ("dual", {"height": 12, "width": 10}),
)
"""What is compiled, each in the first dtype that a training step brings it in: compiling takes seconds."""
_KERNELS = ("affine", "valueset", "block2d", "dual")
_PREFERRED = (torch.bfloat16, torch.bool)


def cases(scale: Scale) -> Cases:
    """Triton kernels, then eager, then compiled."""
    found: dict[str, Callable[[], Measured]] = {}
    every = {codec.name: codec for codec in examples()}.values() if scale.toy else examples()
    stored = [(codec, dtype) for codec in every for dtype in dtypes(codec)[: 1 if scale.toy else None]]
    for how in ("triton", "eager"):
        for codec, dtype in stored:
            if how == "eager" or codec.name in _KERNELS:
                found[_name(how, codec, dtype)] = functools.partial(compare, codec, dtype, how, scale)
    for name, params in COMPILED[: 1 if scale.toy else None]:
        codec = codecs.make(name, **params)
        dtype = next((wanted for wanted in _PREFERRED if wanted in dtypes(codec)), dtypes(codec)[0])
        found[_name("compiled", codec, dtype)] = functools.partial(compare, codec, dtype, "compiled", scale)
    return found


def compare(codec: Codec, dtype: torch.dtype, how: Lowering, scale: Scale) -> Measured:
    """Encode and decode ordinary and awkward rows on the device and on the CPU.

    Returns:
        `ok`, and how many bytes of the payload and elements of the decode differ. A zero-preserving codec, compiled,
        is ok if its error keeps the contract, because it divides as its compiler does.
    """
    cols = fitting(codec, 192 if codec.contract.kind == "exact" else 1000)
    x = sample(codec, (3 if scale.toy else 257, cols), dtype)
    encode, decode = lowered(codec, cols, dtype, how, scale)
    parts = encode(x.to(scale.device))
    y = decode(parts).cpu()
    expected = codec.encode(x, SALT)
    wrong_bytes = sum(_differing_bytes(one, two) for one, two in zip(parts, expected, strict=True))
    wrong = _differing(y, codec.decode(expected, cols, dtype))
    odd_wrong, odd_ok = 0, True
    if codec.contract.kind != "exact":
        odd = _awkward(x)
        odd_y = decode(encode(odd.to(scale.device))).cpu()
        odd_expected = codec.decode(codec.encode(odd, SALT), cols, dtype)
        odd_wrong, odd_ok = _differing(odd_y, odd_expected), torch.equal(odd_y.isnan(), odd_expected.isnan())
    if how == "compiled" and getattr(codec, "zero_preserving", False):
        ok = odd_ok and bool(((y.double() - x.double()).abs() <= largest_error(codec, x)).all())
    else:
        ok = not (wrong_bytes or wrong or odd_wrong)
    return {"ok": ok, "payload_bytes_wrong": wrong_bytes, "elements_wrong": wrong, "awkward_wrong": odd_wrong}


def lowered(
    codec: Codec, cols: int, dtype: torch.dtype, how: Lowering, scale: Scale
) -> tuple[Callable[[Tensor], Parts], Callable[[Parts], Tensor]]:
    """Encode and decode of rows of `cols` elements of `dtype`, as one lowering runs them on the device.

    Raises:
        Skipped: there is no such lowering, or no GPU for it.
    """

    def encode(x: Tensor) -> Parts:
        return codec.encode(x, SALT)

    def decode(*parts: Tensor) -> Tensor:
        return codec.decode(parts, cols, dtype)

    if how == "triton":
        need_cuda(scale)
        kernels = lowering.find(codec, cols, dtype)
        if kernels is None:
            raise Skipped("no kernels for this codec")
        return lambda x: kernels.encode(x, SALT), lambda parts: kernels.decode(parts, cols, dtype)
    if how == "compiled":
        torch.compiler.reset()
        encode = torch.compile(encode, backend=scale.inner, dynamic=False)
        decode = torch.compile(decode, backend=scale.inner, dynamic=False)
    return encode, lambda parts: decode(*parts)


def _awkward(x: Tensor) -> Tensor:
    """A copy with NaN, infinities, large and small magnitudes in different groups of different rows."""
    x = x.clone()
    tiny, huge = torch.finfo(x.dtype).smallest_normal, torch.finfo(x.dtype).max
    x[0, :300:29] *= 0
    x[0, 500] = torch.nan
    x[1, 10], x[1, 900] = torch.inf, huge
    x[2, :400] *= tiny
    x[2, 500:] *= 1e4
    return x


def _differing_bytes(one: Tensor, two: Tensor) -> int:
    return int((one.cpu().contiguous().view(torch.uint8) != two.contiguous().view(torch.uint8)).sum())


def _differing(one: Tensor, two: Tensor) -> int:
    """Elements that are not equal and not both NaN."""
    return int(((one != two) & ~((one != one) & (two != two))).sum())


def _name(how: str, codec: Codec, dtype: torch.dtype) -> str:
    # Fields that a codec does not use stand at 0 or False.
    params = " ".join(f"{key}={value}" for key, value in codecs.params(codec).items() if value)
    return f"{how} {codec.name} {params} {str(dtype).removeprefix('torch.')}"
