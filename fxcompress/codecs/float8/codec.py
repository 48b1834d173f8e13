"""Scaled 8-bit floating point with one bf16 scale per group (as in COAT and torchao's blockwise formats)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fxcompress.codecs.base import Contract, Field
from fxcompress.codecs.checks import check_choice, refuse_but_floats
from fxcompress.codecs.float8 import reference
from fxcompress.errors import OptionError

Format = Literal["e4m3", "e5m2"]
_CODE = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_HALF_STEP_AT_TOP = {"e4m3": 16 / 448, "e5m2": 4096 / 57344}


@dataclass(frozen=True, slots=True)
class Float8:
    """One 8-bit float per element and 16 bits of metadata per `group` elements, rounded to nearest.

    Better than 8-bit affine codes where a group mixes magnitudes, worse near the group's largest value. A group that
    holds NaN, Inf or a magnitude above 2¹²⁵ decodes to NaN, and no other group does; a group of zeros is exact.

    Attributes:
        format: "e4m3" (3 mantissa bits) or "e5m2" (2 mantissa bits, wider range within a group).
        group: elements per group, a multiple of 16.
    """

    format: Format = "e4m3"
    group: int = 128

    def __post_init__(self) -> None:
        check_choice(self.name, "format", self.format, get_args(Format))
        if not isinstance(self.group, int) or self.group <= 0 or self.group % 16:
            raise OptionError(f"float8: group is {self.group!r}; choose a positive multiple of 16")

    @property
    def name(self) -> str:
        return "float8"

    @property
    def bits(self) -> float:
        """Bits per code, without metadata."""
        return 8

    @property
    def contract(self) -> Contract:
        """Bounded by half a step of the top binade, relative to the group's largest magnitude."""
        return Contract("bounded", _HALF_STEP_AT_TOP[self.format] * (1 + 2**-7))

    @property
    def period(self) -> int:
        """A group."""
        return self.group

    def refuse(self, dtype: torch.dtype) -> str:
        """Why `dtype` cannot be stored, or empty."""
        return refuse_but_floats(self.name, dtype)

    def fields(self, cols: int, dtype: torch.dtype) -> tuple[Field, ...]:
        """`codes` in the 8-bit dtype and `scale` bf16, whatever `dtype`."""
        groups = -(-cols // self.group)
        return Field("codes", (groups, self.group), _CODE[self.format]), Field("scale", (groups,), torch.bfloat16)

    def encode(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[*lead, cols]` → (codes, scale); there is no noise to salt."""
        return reference.encode(x, _CODE[self.format], self.group)

    def decode(self, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        """(codes, scale) → `[*lead, cols]` of `dtype`."""
        codes, scale = parts
        return reference.decode(codes, scale, cols, dtype)
