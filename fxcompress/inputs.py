"""Sample inputs written as text: `f32[8,1024]`, `i64[8,128]<32000`. Torch-free until `make` is called.

A size may also be `B`, the batch size, or a multiple of it such as `8*B`, where the reader is told what B is.
"""

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxcompress.errors import OptionError, nearest

if TYPE_CHECKING:
    import torch

    from fxcompress.compat import FakeTensorMode

DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "bool": "bool",
}
FORM = re.compile(r"\s*([a-z]+[0-9]*)\s*\[([0-9B*,\s]*)\]\s*(?:<\s*([0-9]{1,18})\s*)?", re.ASCII)
SIZE = re.compile(r"([0-9]{1,18})|(?:([0-9]{1,9}) *\* *)?B", re.ASCII)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One sample input. `high` bounds the random integers from above; floats are normal, bools fair coins."""

    dtype: str
    shape: tuple[int, ...]
    high: int | None = None

    def make(self, *, fake: "FakeTensorMode | None" = None, device: str = "cpu") -> "torch.Tensor":
        """Return a random tensor from torch's global stream, or a fake one that takes no memory."""
        with fake or nullcontext():
            return self._draw(device)

    def _draw(self, device: str) -> "torch.Tensor":
        import torch

        dtype = getattr(torch, DTYPES[self.dtype])
        if self.dtype == "bool":
            return torch.randint(0, 2, self.shape, device=device).to(dtype)
        if self.dtype in ("i64", "i32"):
            # Without a bound only 0 and 1 are drawn, which index every table of more than one row.
            return torch.randint(0, 2 if self.high is None else self.high, self.shape, dtype=dtype, device=device)
        return torch.randn(self.shape, dtype=dtype, device=device)


def parse_input(text: str, *, batch: int | None = None) -> InputSpec:
    """Read one input specification.

    Args:
        text: as `f32[8,1024]` or `i64[8,128]<32000`; with a batch also `f32[B,1024]` or `f32[4*B,1024]`.
        batch: what B stands for; None: sizes are numbers only.

    Raises:
        OptionError: it has another form, an unknown dtype, or a bound on something that is no integer.
    """
    match = FORM.fullmatch(text)
    texts = [size.strip() for size in match[2].split(",")] if match and match[2].strip() else []
    sizes = [SIZE.fullmatch(size) for size in texts]
    if match is None or not all(sizes):
        raise OptionError(f'input {text!r}: expected a form like "f32[8,1024]" or "i64[8,128]<32000"')
    if batch is None and has_batch(text):
        raise OptionError(f"input {text!r}: B stands for the batch size that `maxbatch` looks for; here, give a number")
    dtype, shape, high = match[1], tuple(_size(size, batch or 0) for size in sizes if size), match[3]
    if dtype not in DTYPES:
        raise OptionError(f"input {text!r}: unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    if high is not None and dtype not in ("i64", "i32"):
        raise OptionError(f"input {text!r}: the bound <{high} is for i64 and i32 only")
    if high == "0" or (high is not None and int(high) > 2**31 and dtype == "i32"):
        raise OptionError(f"input {text!r}: no {dtype} lies in 0 ≤ x < {high}")
    if math.prod(size or 1 for size in shape) >= 2**63:
        raise OptionError(f"input {text!r}: more elements than a tensor can have")
    return InputSpec(dtype, shape, None if high is None else int(high))


def parse_inputs(texts: Sequence[str], *, batch: int | None = None) -> tuple[InputSpec, ...]:
    """Read input specifications in order."""
    return tuple(parse_input(text, batch=batch) for text in texts)


def has_batch(text: str) -> bool:
    """Whether an input specification that `parse_input` takes states the batch size B."""
    return "B" in text


def check_templates(texts: Sequence[str]) -> None:
    """Check input specifications of which at least one should state the batch size B.

    Raises:
        OptionError: one is wrong, or none states it.
    """
    parse_inputs(texts, batch=1)
    if texts and not any(map(has_batch, texts)):
        raise OptionError(f'input {texts[0]!r}: no size is B, the batch size to look for; write "f32[B,3,32,32]"')


def _size(match: re.Match[str], batch: int) -> int:
    return int(match[1]) if match[1] else int(match[2] or 1) * batch
