"""Affine group quantization: 1 to 8 bits per element, one bf16 scale and zero per group (as in ActNN and GACT)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fxcompress.codecs import maps
from fxcompress.codecs.affine import reference, signs
from fxcompress.codecs.base import Contract, Field
from fxcompress.codecs.bitpack import WIDTHS
from fxcompress.codecs.checks import check_choice, refuse_but_floats
from fxcompress.codecs.noise import CALL
from fxcompress.errors import OptionError

Rounding = Literal["stochastic", "nearest"]
_DEFAULT_GROUP = {1: 64, 2: 64, 4: 128, 8: 128}


def step_contract(
    bits: int, rounding: Rounding, *, zero_preserving: bool = False, sign_preserving: bool = False
) -> Contract:
    """Unbiased, or bounded by half a step, stated relative to the largest magnitude of what shares a scale."""
    if rounding == "stochastic":
        return Contract("unbiased")
    outward = (1 + 2**-7) ** 2
    if zero_preserving or sign_preserving:
        return Contract("bounded", outward / (2 * count_steps(bits, zero_preserving, sign_preserving)))
    return Contract("bounded", outward / (2**bits - 1))


def count_steps(bits: int, zero_preserving: bool, sign_preserving: bool) -> int:
    """Steps between the codes of a group, or of one of its signs."""
    return (1 << (bits - 1)) - 1 if sign_preserving else (1 << bits) - (2 if zero_preserving else 1)


@dataclass(frozen=True, slots=True)
class Affine:
    """Codes of `bits` per element and 32 bits of metadata per `group` elements.

    One step is (max - min)/(2^bits - 1) of the group, with min and the quotient rounded outwards to bf16. A group that
    holds NaN, Inf or a magnitude above 2¹²⁵ decodes to NaN, and no other group does; a constant that bf16 can
    represent is exact.

    Zero-preserving storage is for non-negative tensors: zeros decode to zeros, even in a group that is not finite, and
    nothing else decodes to zero. It costs one code, and values below 2⁻¹²⁶ may come back as 2⁻¹²⁶.

    Sign-preserving storage is for tensors about zero: what is positive decodes to something positive, and nothing else
    does but in a group that is not finite. One bit of a code is the sign, and each sign has a scale of its own, from
    zero on: the 32 bits hold both. Positive values may come back as 2⁻¹²⁶, or 2⁻²⁴ in fp16, instead of zero.

    Attributes:
        bits: 1, 2, 4 or 8.
        group: elements per group, a multiple of 16; 0 picks 64 up to 2 bits and 128 above.
        rounding: stochastic is unbiased; nearest halves the largest error and adds the same bias at every step.
        zero_preserving: whether code 0 is kept for x = 0; needs 2 bits.
        sign_preserving: whether x > 0 can be asked of what is stored; needs 2 bits.
        heads: if not 0, one group per attention head as in Mesa (Pan et al., 2021): a row is `[outer, heads, dim]`, and
            all elements of a head share a scale, whatever their token. `group` is then 0.
        dim: contiguous elements of one head.
    """

    bits: int = 4
    group: int = 0
    rounding: Rounding = "stochastic"
    zero_preserving: bool = False
    heads: int = 0
    dim: int = 0
    sign_preserving: bool = False

    def __post_init__(self) -> None:
        check_choice(self.name, "bits", self.bits, WIDTHS)
        if not isinstance(self.group, int) or self.group < 0 or self.group % CALL:
            raise OptionError(f"affine: group is {self.group!r}; choose a multiple of {CALL}, or 0 for the default")
        check_choice(self.name, "rounding", self.rounding, get_args(Rounding))
        if self.zero_preserving and self.bits < 2:
            raise OptionError("affine: zero_preserving takes one code for zero; choose bits=2 or more")
        if self.sign_preserving and (self.bits < 2 or self.zero_preserving):
            raise OptionError("affine: sign_preserving takes one bit, without zero_preserving; choose bits=2 or more")
        if self.heads or self.dim:
            maps.check_map("affine", heads=self.heads, dim=self.dim)
            if self.group or self.zero_preserving or self.sign_preserving:
                raise OptionError("affine: heads are groups of their own, which preserve neither zeros nor signs")
            return
        # Equal configurations must compare and serialise equal, whether or not the default was spelled out.
        object.__setattr__(self, "group", self.group or _DEFAULT_GROUP[self.bits])

    @property
    def name(self) -> str:
        return "affine"

    @property
    def contract(self) -> Contract:
        """As `step_contract` says, with the group's largest magnitude."""
        keeps = {"zero_preserving": self.zero_preserving, "sign_preserving": self.sign_preserving}
        return step_contract(self.bits, self.rounding, **keeps)

    @property
    def steps(self) -> int:
        """Between the codes of a group, or of one of its signs."""
        return count_steps(self.bits, self.zero_preserving, self.sign_preserving)

    @property
    def period(self) -> int:
        """A group; heads are groups of a whole row."""
        return 0 if self.heads else self.group

    def refuse(self, dtype: torch.dtype) -> str:
        """Why `dtype` cannot be stored, or empty."""
        return refuse_but_floats(self.name, dtype)

    def fields(self, cols: int, dtype: torch.dtype) -> tuple[Field, ...]:
        """`codes` uint8 and `word` int32 (scale << 16 | zero, bf16 each), whatever `dtype`.

        Sign-preserving, the word is the scale of positive values << 16 | that of the others.
        """
        if self.heads:
            size = maps.count_planes("affine", cols, self.heads, self.dim, 1) * self.dim
            codes = maps.padded(size, CALL) * self.bits // 8
            return Field("codes", (self.heads, codes), torch.uint8), Field("word", (self.heads,), torch.int32)
        groups = -(-cols // self.group)
        return (
            Field("codes", (groups, self.group * self.bits // 8), torch.uint8),
            Field("word", (groups,), torch.int32),
        )

    def encode(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[*lead, cols]` → (codes, word)."""
        if self.heads:
            return self._encode_heads(x, salt)
        name = salt if self.rounding == "stochastic" else None
        if self.sign_preserving:
            return signs.encode(x, self.bits, self.group, name)
        quantize = reference.encode_zero_preserving if self.zero_preserving else reference.encode
        return quantize(x, self.bits, self.group, name)

    def decode(self, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        """(codes, word) → `[*lead, cols]` of `dtype`."""
        codes, word = parts
        if self.heads:
            size = cols // self.heads
            rows = reference.decode(codes[..., None, :], word[..., None], self.bits, size, dtype)
            heads = rows.reshape(*rows.shape[:-1], size // self.dim, self.dim)
            return heads.transpose(-3, -2).reshape(*rows.shape[:-2], cols)
        if self.sign_preserving:
            return signs.decode(codes, word, self.bits, cols, dtype)
        dequantize = reference.decode_zero_preserving if self.zero_preserving else reference.decode
        return dequantize(codes, word, self.bits, cols, dtype)

    def _encode_heads(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        *lead, cols = x.shape
        size = cols // self.heads
        heads = x.reshape(*lead, size // self.dim, self.heads, self.dim).transpose(-3, -2)
        name = salt if self.rounding == "stochastic" else None
        codes, word = reference.encode(heads.reshape(*lead, self.heads, size), self.bits, maps.padded(size, CALL), name)
        return codes.squeeze(-2), word.squeeze(-1)
