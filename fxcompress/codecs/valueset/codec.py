"""Exact storage of tensors whose values are statically known to lie in lo, lo + step, …, as ⌈log2 count⌉ bits each."""

from dataclasses import dataclass

import torch

from fxcompress.codecs.base import Contract, Field
from fxcompress.codecs.valueset import reference
from fxcompress.errors import OptionError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Integers up to this magnitude are exact in the dtype.
_EXACT = {torch.float16: 2**11, torch.bfloat16: 2**8, torch.float32: 2**24, torch.float64: 2**53}
_MOST_BITS = 32


@dataclass(frozen=True, slots=True)
class Valueset:
    """Values lo + step·k, 0 ≤ k < count, of bool, integer or floating point tensors.

    Bit-equal for every value of the set, which must come from static facts alone: a value outside it comes back as
    another one. A floating point zero comes back as +0.0, so no set with zero may be claimed of tensors with -0.0.

    Attributes:
        lo: smallest value.
        step: distance of neighbouring values, ≥ 1.
        count: number of values, 2 … 2³².
        slab: 0: the codes of a block of 64 elements share bytes. Otherwise a row is slabs of so many elements, a
            multiple of eight of them, and codes share bytes with those at their place in other slabs.
    """

    lo: int = 0
    step: int = 1
    count: int = 2
    slab: int = 0

    def __post_init__(self) -> None:
        for name in ("lo", "step", "count", "slab"):
            if type(getattr(self, name)) is not int:
                raise OptionError(f"valueset: {name} is {getattr(self, name)!r}; give an int")
        if self.step < 1:
            raise OptionError(f"valueset: step is {self.step}; give a positive distance and the smallest value as lo")
        if self.slab < 0:
            raise OptionError(f"valueset: slab is {self.slab}; give a number of elements, or 0")
        if not 2 <= self.count <= 2**_MOST_BITS:
            raise OptionError(f"valueset: count is {self.count}; choose 2 … 2^{_MOST_BITS} values")
        if self.lo < -(2**63) or self._hi >= 2**63:
            raise OptionError(f"valueset: values {self.lo} … {self._hi} do not fit in 64 bits")

    @property
    def _hi(self) -> int:
        return self.lo + self.step * (self.count - 1)

    @property
    def name(self) -> str:
        return "valueset"

    @property
    def bits(self) -> int:
        """Bits per code."""
        return (self.count - 1).bit_length()

    @property
    def contract(self) -> Contract:
        return Contract("exact")

    @property
    def period(self) -> int:
        """A block; rows of slabs are stored as they are."""
        return 0 if self.slab else reference.BLOCK

    def refuse(self, dtype: torch.dtype) -> str:
        """Why tensors of `dtype` cannot hold this set of values, or empty."""
        if dtype == torch.bool:
            fits = (self.lo, self._hi) == (0, 1)
        elif dtype in _INTEGERS:
            fits = torch.iinfo(dtype).min <= self.lo and self._hi <= torch.iinfo(dtype).max
        elif dtype in _EXACT:
            fits = max(-self.lo, self._hi) <= _EXACT[dtype]
        else:
            return f"valueset does not store {dtype}"
        return "" if fits else f"values {self.lo} … {self._hi} are not all exact in {dtype}"

    def fields(self, cols: int, dtype: torch.dtype) -> tuple[Field, ...]:
        """`p0`, `p1`, …: the pieces of the codes, from the low bits up, whatever `dtype`.

        Raises:
            OptionError: a row is not a multiple of eight slabs.
        """
        if self.slab:
            if cols % (8 * self.slab):
                raise OptionError(f"valueset: rows of {cols} elements are not eight times slabs of {self.slab}")
            slabs = cols // self.slab
            return tuple(
                Field(f"p{i}", (slabs * width // 8, self.slab), torch.uint8)
                for i, width in enumerate(reference.widths(self.bits))
            )
        blocks = -(-cols // reference.BLOCK)
        return tuple(
            Field(f"p{i}", (blocks, reference.BLOCK * width // 8), torch.uint8)
            for i, width in enumerate(reference.widths(self.bits))
        )

    def encode(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[*lead, cols]` → the pieces; there is no noise to salt."""
        return reference.encode(x, self.lo, self.step, self.bits, self._wide, self.slab)

    def decode(self, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        """The pieces → `[*lead, cols]` of `dtype`."""
        return reference.decode(parts, self.lo, self.step, self.bits, cols, dtype, self._wide, self.slab)

    @property
    def _wide(self) -> torch.dtype:
        span = self.step * (self.count - 1)
        narrow = self.lo >= -(2**31) and max(self._hi, span) < 2**31
        return torch.int32 if narrow else torch.int64
