"""Affine quantization per attention head from running ranges, as in Mesa (Pan et al., 2021)."""

import math
from dataclasses import dataclass
from typing import get_args

import torch

from fxcompress.codecs import maps
from fxcompress.codecs.affine import reference as affine
from fxcompress.codecs.affine.codec import Rounding, step_contract
from fxcompress.codecs.base import Contract, Field
from fxcompress.codecs.bitpack import WIDTHS
from fxcompress.codecs.checks import check_choice, refuse_but_floats
from fxcompress.codecs.groups import to_groups
from fxcompress.codecs.noise import CALL
from fxcompress.codecs.running import live, reference
from fxcompress.errors import OptionError


@dataclass(frozen=True, slots=True)
class Running:
    """Codes of `bits` per element and one range per head, which follows the ranges of past steps.

    A row is `[outer, heads, dim]`; all elements of a head share a range, whatever their token, and so do all rows. The
    payload holds the range that was used. Values outside it come back as its nearest end; a head that holds NaN, Inf or
    a magnitude above 2¹²⁵ decodes to NaN, moves no range, and no other head does.

    Attributes:
        bits: 1, 2, 4 or 8.
        rounding: stochastic is unbiased within the range.
        heads: in a row.
        dim: contiguous elements of one head.
        decay: weight of the past, in 0 … 1 (0.9 in Mesa). The first step is stored in its own range.
        key: names the range (`live`); if empty, each row is stored in its own, as `affine` stores heads.
    """

    bits: int = 8
    rounding: Rounding = "stochastic"
    heads: int = 1
    dim: int = 1
    decay: float = 0.9
    key: str = ""

    def __post_init__(self) -> None:
        check_choice(self.name, "bits", self.bits, WIDTHS)
        check_choice(self.name, "rounding", self.rounding, get_args(Rounding))
        maps.check_map("running", heads=self.heads, dim=self.dim)
        if not 0 <= self.decay < 1:
            raise OptionError(f"running: decay is {self.decay!r}; choose a number in 0 … 1, without 1")

    @property
    def name(self) -> str:
        return "running"

    @property
    def contract(self) -> Contract:
        """Without a key as `affine`; with one, the range is known at run time only."""
        if self.key:
            return Contract("bounded", 0.0, math.inf)
        return step_contract(self.bits, self.rounding, zero_preserving=False)

    @property
    def period(self) -> int:
        """None: heads are groups of a whole row."""
        return 0

    def refuse(self, dtype: torch.dtype) -> str:
        """Why `dtype` cannot be stored, or empty."""
        return refuse_but_floats(self.name, dtype)

    def fields(self, cols: int, dtype: torch.dtype) -> tuple[Field, ...]:
        """`codes` uint8 and `word` int32 (scale << 16 | zero, bf16 each) per head, whatever `dtype`."""
        size = maps.count_planes("running", cols, self.heads, self.dim, 1) * self.dim
        codes = maps.padded(size, CALL) * self.bits // 8
        return Field("codes", (self.heads, codes), torch.uint8), Field("word", (self.heads,), torch.int32)

    def encode(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[*lead, cols]` → (codes, word); moves the range named `key`."""
        *lead, cols = x.shape
        size = cols // self.heads
        rows = x.reshape(*lead, size // self.dim, self.heads, self.dim).transpose(-3, -2)
        values = rows.reshape(*lead, self.heads, size).to(torch.float32)
        low, high = values.amin(-1), values.amax(-1)
        if self.key:
            low, high = (part.reshape(-1, self.heads) for part in (low, high))
            low, high = live.running_range(low.amin(0), high.amax(0), self.key, self.decay)
        padded = to_groups(values, maps.padded(size, CALL)).squeeze(-2)
        return reference.encode(padded, low, high, self.bits, salt if self.rounding == "stochastic" else None)

    def decode(self, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        """(codes, word) → `[*lead, cols]` of `dtype`."""
        codes, word = parts
        size = cols // self.heads
        rows = affine.decode(codes[..., None, :], word[..., None], self.bits, size, dtype)
        heads = rows.reshape(*rows.shape[:-1], size // self.dim, self.dim)
        return heads.transpose(-3, -2).reshape(*rows.shape[:-2], cols)
