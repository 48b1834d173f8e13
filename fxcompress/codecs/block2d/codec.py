"""Affine quantization whose groups are blocks of a map: near elements of an image or a sequence share a scale."""

from dataclasses import dataclass
from typing import get_args

import torch

from fxcompress.codecs import maps
from fxcompress.codecs.affine.codec import Rounding, step_contract
from fxcompress.codecs.base import Contract, Field
from fxcompress.codecs.bitpack import WIDTHS
from fxcompress.codecs.block2d import reference
from fxcompress.codecs.checks import check_choice, refuse_but_floats
from fxcompress.codecs.noise import CALL
from fxcompress.errors import OptionError


@dataclass(frozen=True, slots=True)
class Block2d:
    """Codes of `bits` per element and 32 bits of metadata per cell of a map.

    A cell is `block` × `block` elements of one (sample, channel) of a map, or `block`² tokens of one of a sequence,
    clipped to the sizes. Errors, non-finite values and zero-preserving storage are as for `affine`, with cells for
    groups. Ragged cells repeat the map's edge, and codes are padded to whole words of 16; the byte count includes both.

    Attributes:
        height: rows of a map, or tokens of a sequence.
        width: columns of a map; 1 for a sequence.
        inner: elements that lie between neighbours in memory (channels of a sequence or a channels_last map), else 1.
        bits: 1, 2, 4 or 8.
        block: edge of a cell.
        rounding: stochastic is unbiased.
        zero_preserving: whether code 0 is kept for x = 0; needs 2 bits.
    """

    height: int = 8
    width: int = 8
    inner: int = 1
    bits: int = 2
    block: int = 8
    rounding: Rounding = "stochastic"
    zero_preserving: bool = False

    def __post_init__(self) -> None:
        maps.check_map("block2d", height=self.height, width=self.width, inner=self.inner, block=self.block)
        check_choice(self.name, "bits", self.bits, WIDTHS)
        check_choice(self.name, "rounding", self.rounding, get_args(Rounding))
        if self.zero_preserving and self.bits < 2:
            raise OptionError("block2d: zero_preserving takes one code for zero; choose bits=2 or more")

    @property
    def name(self) -> str:
        return "block2d"

    @property
    def contract(self) -> Contract:
        """As `step_contract` says, with the cell's largest magnitude."""
        return step_contract(self.bits, self.rounding, zero_preserving=self.zero_preserving)

    @property
    def _cell(self) -> tuple[int, int]:
        tall = self.block if self.width > 1 else self.block**2
        return min(tall, self.height), min(self.block, self.width)

    @property
    def _group(self) -> int:
        return maps.padded(self._cell[0] * self._cell[1], CALL)

    @property
    def period(self) -> int:
        """None: a row holds whole maps."""
        return 0

    def refuse(self, dtype: torch.dtype) -> str:
        """Why `dtype` cannot be stored, or empty."""
        return refuse_but_floats(self.name, dtype)

    def fields(self, cols: int, dtype: torch.dtype) -> tuple[Field, ...]:
        """`codes` uint8 and `word` int32 per cell, whatever `dtype`; `OptionError` for maps of other sizes."""
        planes = maps.count_planes("block2d", cols, self.height, self.width, self.inner)
        cells = planes * -(-self.height // self._cell[0]) * -(-self.width // self._cell[1])
        return (
            Field("codes", (cells, self._group * self.bits // 8), torch.uint8),
            Field("word", (cells,), torch.int32),
        )

    def encode(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[*lead, cols]` → (codes, word)."""
        planes = maps.to_planes(x, self.height, self.width, self.inner)
        name = salt if self.rounding == "stochastic" else None
        return reference.encode(planes, self.bits, self._group, self._cell, name, zero_preserving=self.zero_preserving)

    def decode(self, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        """(codes, word) → `[*lead, cols]` of `dtype`."""
        planes = reference.decode(
            parts, self.bits, self._cell, self.height, self.width, dtype, zero_preserving=self.zero_preserving
        )
        return maps.from_planes(planes, self.inner)
