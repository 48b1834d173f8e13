"""Low-frequency means and a quantized residual, as in DIVISION (Wang et al., ICML 2023)."""

from dataclasses import dataclass
from typing import get_args

import torch

from fxcompress.codecs import maps
from fxcompress.codecs.affine.codec import Rounding
from fxcompress.codecs.base import Contract, Field
from fxcompress.codecs.checks import check_choice, refuse_but_floats
from fxcompress.codecs.dual import reference
from fxcompress.codecs.noise import CALL

WIDTHS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Dual:
    """A bf16 mean per cell, and a code of `bits` per element for what is left, with 32 bits of metadata per plane.

    A plane is one (sample, channel) of a map or a sequence. A plane that holds NaN, Inf or a magnitude above 2¹²⁵
    decodes to NaN, and no other plane does; a plane constant at a bf16 value is exact. A plane's codes are padded to
    whole words of 16, which the byte count includes.

    Attributes:
        height: rows of a map, or tokens of a sequence.
        width: columns of a map; 1 for a sequence.
        inner: elements that lie between neighbours in memory (channels of a sequence or a channels_last map), else 1.
        bits: 1, 2 or 4.
        block: a cell is `block` × `block`, clipped to the map's sizes.
        rounding: of the residual; stochastic is unbiased.
    """

    height: int = 8
    width: int = 8
    inner: int = 1
    bits: int = 2
    block: int = 8
    rounding: Rounding = "stochastic"

    def __post_init__(self) -> None:
        maps.check_map("dual", height=self.height, width=self.width, inner=self.inner, block=self.block)
        check_choice(self.name, "bits", self.bits, WIDTHS)
        check_choice(self.name, "rounding", self.rounding, get_args(Rounding))

    @property
    def name(self) -> str:
        return "dual"

    @property
    def contract(self) -> Contract:
        """Unbiased, or bounded relative to the row's largest magnitude m: a residual lies in -2m … 2m."""
        if self.rounding == "stochastic":
            return Contract("unbiased")
        return Contract("bounded", 2 * (1 + 2**-7) ** 2 / (2**self.bits - 1))

    @property
    def _cell(self) -> tuple[int, int]:
        return min(self.block, self.height), min(self.block, self.width)

    @property
    def _group(self) -> int:
        return maps.padded(self.height * self.width, CALL)

    @property
    def period(self) -> int:
        """None: a row holds whole maps."""
        return 0

    def refuse(self, dtype: torch.dtype) -> str:
        """Why `dtype` cannot be stored, or empty."""
        return refuse_but_floats(self.name, dtype)

    def fields(self, cols: int, dtype: torch.dtype) -> tuple[Field, ...]:
        """`means` bf16, `codes` uint8 and `word` int32 per plane, whatever `dtype`; `OptionError` for other maps."""
        planes = maps.count_planes("dual", cols, self.height, self.width, self.inner)
        rows, columns = (-(-size // cell) for size, cell in zip((self.height, self.width), self._cell, strict=True))
        return (
            Field("means", (planes, rows, columns), torch.bfloat16),
            Field("codes", (planes, self._group * self.bits // 8), torch.uint8),
            Field("word", (planes,), torch.int32),
        )

    def encode(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[*lead, cols]` → (means, codes, word)."""
        planes = maps.to_planes(x, self.height, self.width, self.inner)
        name = salt if self.rounding == "stochastic" else None
        return reference.encode(planes, self.bits, self._group, self._cell, name)

    def decode(self, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        """(means, codes, word) → `[*lead, cols]` of `dtype`."""
        planes = reference.decode(parts, self.bits, self._cell, self.height, self.width, dtype)
        return maps.from_planes(planes, self.inner)
