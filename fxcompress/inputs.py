"""Sample inputs written as text: `f32[8,1024]`, `i64[8,128]<32000`. Torch-free until `make` is called."""

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxcompress.errors import OptionError, nearest

if TYPE_CHECKING:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "bool": "bool",
}
FORM = re.compile(r"\s*([a-z]+[0-9]*)\s*\[([0-9,\s]*)\]\s*(?:<\s*([0-9]{1,18})\s*)?", re.ASCII)


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


def parse_input(text: str) -> InputSpec:
    """Read one input specification.

    Raises:
        OptionError: it has another form, an unknown dtype, or a bound on something that is no integer.
    """
    match = FORM.fullmatch(text)
    sizes = [size.strip() for size in match[2].split(",")] if match and match[2].strip() else []
    if match is None or not all(size.isdigit() and len(size) < 19 for size in sizes):
        raise OptionError(f'input {text!r}: expected a form like "f32[8,1024]" or "i64[8,128]<32000"')
    dtype, shape, high = match[1], tuple(map(int, sizes)), match[3]
    if dtype not in DTYPES:
        raise OptionError(f"input {text!r}: unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    if high is not None and dtype not in ("i64", "i32"):
        raise OptionError(f"input {text!r}: the bound <{high} is for i64 and i32 only")
    if high == "0" or (high is not None and int(high) > 2**31 and dtype == "i32"):
        raise OptionError(f"input {text!r}: no {dtype} lies in 0 ≤ x < {high}")
    if math.prod(size or 1 for size in shape) >= 2**63:
        raise OptionError(f"input {text!r}: more elements than a tensor can have")
    return InputSpec(dtype, shape, None if high is None else int(high))


def parse_inputs(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Read input specifications in order."""
    return tuple(parse_input(text) for text in texts)
