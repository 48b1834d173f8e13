"""Public test helpers. Codec contract: what every registered codec is held to, stated once.

`EXAMPLES` lists configurations per codec; a codec that is not listed is tested with its defaults. The checks raise
AssertionError with the codec and the numbers.
"""

import math
from collections.abc import Iterator

import torch

from fxcompress import codecs
from fxcompress.codecs.affine.signs import least_positive
from fxcompress.codecs.base import Codec, payload_nbytes

EXAMPLES: dict[str, tuple[dict[str, object], ...]] = {
    "affine": (
        {"bits": 1},
        {"bits": 2},
        {"bits": 4},
        {"bits": 8},
        {"bits": 1, "rounding": "nearest"},
        {"bits": 2, "rounding": "nearest"},
        {"bits": 4, "rounding": "nearest"},
        {"bits": 8, "rounding": "nearest"},
        {"bits": 2, "zero_preserving": True},
        {"bits": 4, "zero_preserving": True},
        {"bits": 8, "zero_preserving": True},
        {"bits": 2, "zero_preserving": True, "rounding": "nearest"},
        {"bits": 2, "sign_preserving": True},
        {"bits": 4, "sign_preserving": True},
        {"bits": 8, "sign_preserving": True, "rounding": "nearest"},
        {"bits": 4, "sign_preserving": True, "rounding": "nearest"},
        {"bits": 4, "group": 16},
        {"bits": 2, "group": 48},
        {"bits": 8, "heads": 3, "dim": 5, "rounding": "nearest"},
        {"bits": 2, "heads": 2, "dim": 16},
    ),
    "block2d": (
        {},
        {"bits": 4, "height": 7, "width": 7, "rounding": "nearest"},
        {"bits": 8, "height": 3, "width": 5, "rounding": "nearest"},
        {"height": 12, "width": 10, "zero_preserving": True},
        {"height": 20, "width": 1, "inner": 3, "block": 4},
        {"height": 9, "width": 4, "inner": 2, "bits": 1},
    ),
    "bounded": (
        {},
        {"eps": 0.5, "bits": 2, "group": 16, "spare": 0},
        {"eps": 1e-4, "bits": 8, "spare": 2},
        {"eps": 1e-30, "bits": 4, "spare": 0},
        {"eps": 0.25, "bits": 4, "group": 32, "spare": 1},
    ),
    "dual": (
        {},
        {"bits": 4, "height": 7, "width": 7, "rounding": "nearest"},
        {"bits": 1, "height": 3, "width": 5},
        {"height": 12, "width": 10},
        {"height": 20, "width": 1, "inner": 3, "bits": 4},
        {"height": 9, "width": 4, "inner": 2, "rounding": "nearest"},
    ),
    "float8": ({"format": "e4m3"}, {"format": "e5m2"}, {"group": 16}),
    "running": ({}, {"bits": 4, "heads": 3, "dim": 5, "rounding": "nearest"}, {"bits": 2, "heads": 2, "dim": 16}),
    "valueset": (
        {"lo": 0, "step": 1, "count": 2},
        {"lo": -1, "step": 2, "count": 2},
        {"lo": -5, "step": 1, "count": 11},
        {"lo": 3, "step": 7, "count": 17},
        {"slab": 3},
        {"lo": -5, "count": 11, "slab": 2},
    ),
}
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TRIED = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def examples() -> Iterator[Codec]:
    """Every registered codec in the configurations of `EXAMPLES`."""
    for name in codecs.names():
        for params in EXAMPLES.get(name, ({},)):
            yield codecs.make(name, **params)


def dtypes(codec: Codec) -> tuple[torch.dtype, ...]:
    """The dtypes that `codec` accepts."""
    return tuple(dtype for dtype in _TRIED if not codec.refuse(dtype))


def fitting(codec: Codec, cols: int) -> int:
    """The smallest row size from `cols` on that `codec` can hold: whole maps, if it stores maps."""
    params = codecs.params(codec)
    unit = math.prod(
        int(str(params[name])) for name in ("height", "width", "inner", "heads", "dim") if params.get(name)
    )
    unit *= 8 * int(str(params["slab"])) if params.get("slab") else 1
    return -(-cols // unit) * unit


def sample(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Data that `codec` may be given: its value set, non-negative or normal values."""
    generator = torch.Generator().manual_seed(seed)
    params = codecs.params(codec)
    if codec.contract.kind == "exact":
        lo, step, count = (int(str(params[key])) for key in ("lo", "step", "count"))
        return (lo + step * torch.randint(0, count, shape, generator=generator)).to(dtype)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (values.relu() if params.get("zero_preserving") else values).to(dtype)


def largest_error(codec: Codec, x: torch.Tensor) -> torch.Tensor:
    """The error that the contract admits, per element of `[*lead, cols]`, as fp64; `x` is finite.

    Unbiased codecs may miss by one step: the group's range, widened by the rounding of its lower end and of the step to
    bf16, over the number of steps; a difference from a mean has twice the range. Groups of maps and heads are not runs
    of a row, so that the whole row counts as one. Casting the decode to the dtype of `x` may add half a unit in the
    last place.
    """
    if codec.contract.kind == "exact":
        return torch.zeros_like(x, dtype=torch.float64)
    params = codecs.params(codec)
    group = int(str(params.get("group", 0))) or x.shape[-1]
    magnitude = _spread(x.double().abs(), group, torch.Tensor.amax)
    cast = x.double().abs() * torch.finfo(x.dtype).eps + magnitude * 2**-23 + 2.0**-126
    if codec.contract.kind != "unbiased":
        least = least_positive(x.dtype) if params.get("sign_preserving") else 0.0
        return (codec.contract.bound * magnitude).clamp_min(codec.contract.absolute) + cast + least
    if params.get("sign_preserving"):
        return magnitude * (1 + 2**-7) / (2 ** (codec.bits - 1) - 1) + cast + least_positive(x.dtype)
    low = 0 * magnitude if params.get("zero_preserving") else _spread(x.double(), group, torch.Tensor.amin)
    span = _spread(x.double(), group, torch.Tensor.amax) - low + magnitude * 2**-7
    span = 2 * span if codec.name == "dual" else span
    steps = 2**codec.bits - (2 if params.get("zero_preserving") else 1)
    return span * (1 + 2**-7) / steps + cast


def _spread(x: torch.Tensor, group: int, reduce: object) -> torch.Tensor:
    """Reduce each group of the last axis and give every element its group's result."""
    assert callable(reduce)
    bounds = range(0, x.shape[-1], group)
    parts = [x[..., at : at + group] for at in bounds]
    parts = [reduce(part, -1, keepdim=True).expand(part.shape) for part in parts]
    return torch.cat(parts, -1)


def check_payload(codec: Codec, x: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> None:
    """The payload of `[*lead, cols]` is what `fields` states: number, shapes, dtypes, contiguity, bytes."""
    *lead, cols = x.shape
    fields = codec.fields(cols, x.dtype)
    got = [(tuple(part.shape), part.dtype, part.is_contiguous()) for part in parts]
    want = [((*lead, *field.shape), field.dtype, True) for field in fields]
    assert got == want, f"{codec}: payload {got}, stated {want}"
    nbytes = sum(part.untyped_storage().nbytes() for part in parts)
    stated = payload_nbytes(codec, x[..., 0].numel(), cols, x.dtype)
    assert nbytes == stated, f"{codec}: payload of {nbytes} bytes, stated {stated}"


def check_roundtrip(codec: Codec, x: torch.Tensor, salt: int | torch.Tensor = 1) -> torch.Tensor:
    """Encode and decode finite `[*lead, cols]`, check payload, shape, dtype and error; return the decode."""
    parts = codec.encode(x, salt)
    check_payload(codec, x, parts)
    y = codec.decode(parts, x.shape[-1], x.dtype)
    assert (y.shape, y.dtype) == (x.shape, x.dtype), f"{codec}: {x.shape} {x.dtype} came back as {y.shape} {y.dtype}"
    excess = (y.double() - x.double()).abs() - largest_error(codec, x)
    assert not excess.isnan().any() and excess.max() <= 0, f"{codec}: error exceeds the contract by {excess.max()}"
    return y
