"""Error-bounded quantization: every element within a stated distance, at a fixed rate (after COMET, VLDB 2022)."""

import math
from dataclasses import dataclass

import torch

from fxcompress.codecs.base import Contract, Field
from fxcompress.codecs.bounded import live, reference
from fxcompress.codecs.checks import check_choice, refuse_but_floats
from fxcompress.codecs.groups import LARGEST
from fxcompress.codecs.noise import CALL
from fxcompress.errors import OptionError

WIDTHS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Bounded:
    """Multiples of a step: |x̂ - x| ≤ eps for every finite element of a group that fits, and zeros exact.

    A group fits if its range is at most 2·eps·(2^bits - 2) and its magnitude at most 2·eps·8191, both less 2 %. Of
    those that do not, one in `spare` of a row is stored as it is; what is still left over gets the smallest step that
    fits, and the payload states it (`reference.stated_bound`): at a fixed rate, no codec can do more. A group that
    holds NaN, Inf or a magnitude above 2¹²⁵ decodes to NaN, and no other group does; it may leave its room to another.

    Attributes:
        eps: the bound, an absolute number, or in root mean squares of the row if `relative`.
        bits: 2, 4 or 8.
        group: elements per group, a multiple of 16.
        spare: one group in so many is stored as it is; 0 for none.
        relative: whether `eps` counts in root mean squares of a row's finite elements.
        key: if not empty, `live.set_bound(key, …)` replaces `eps` between steps, without a compilation.
    """

    eps: float = 0.1
    bits: int = 4
    group: int = 64
    spare: int = 64
    relative: bool = False
    key: str = ""

    def __post_init__(self) -> None:
        number = isinstance(self.eps, int | float) and not isinstance(self.eps, bool)
        if not number or not live.SMALLEST <= self.eps <= live.LARGEST:
            raise OptionError(f"bounded: eps is {self.eps!r}; choose a number in 2^-100 … 2^100")
        check_choice(self.name, "bits", self.bits, WIDTHS)
        if not isinstance(self.group, int) or self.group <= 0 or self.group % CALL:
            raise OptionError(f"bounded: group is {self.group!r}; choose a positive multiple of {CALL}")
        if not isinstance(self.spare, int) or self.spare < 0:
            raise OptionError(f"bounded: spare is {self.spare!r}; choose an integer ≥ 0")
        if self.key and self.relative:
            raise OptionError("bounded: a bound that is set by key is absolute; drop relative")
        object.__setattr__(self, "eps", float(self.eps))

    @property
    def name(self) -> str:
        return "bounded"

    @property
    def contract(self) -> Contract:
        """Within eps, or within what the rate allows a group of that magnitude."""
        absolute = math.inf if self.relative or self.key else self.eps
        return Contract("bounded", (1 + 2**-7) ** 2 / (2**self.bits - 2), absolute)

    @property
    def period(self) -> int:
        """A group, unless the groups of a row share spare room or a bound."""
        return 0 if self.spare or self.relative else self.group

    def refuse(self, dtype: torch.dtype) -> str:
        """Why `dtype` cannot be stored, or empty."""
        return refuse_but_floats(self.name, dtype)

    def fields(self, cols: int, dtype: torch.dtype) -> tuple[Field, ...]:
        """`codes` uint8 and `word` int32; `raw` of `dtype` and `index` int32 where there is room for a raw group."""
        groups = -(-cols // self.group)
        room = self._room(groups)
        first = (
            Field("codes", (groups, self.group * self.bits // 8), torch.uint8),
            Field("word", (groups,), torch.int32),
        )
        return (*first, Field("raw", (room, self.group), dtype), Field("index", (room,), torch.int32))[
            : 4 if room else 2
        ]

    def encode(self, x: torch.Tensor, salt: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[*lead, cols]` → (codes, word) or (codes, word, raw, index); there is no noise to salt."""
        groups = -(-x.shape[-1] // self.group)
        return reference.encode(x, self._bound(x), self.bits, self.group, self._room(groups))

    def decode(self, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        """Payload → `[*lead, cols]` of `dtype`."""
        return reference.decode(parts, self.bits, cols, dtype)

    def _room(self, groups: int) -> int:
        return groups // self.spare if self.spare else 0

    def _bound(self, x: torch.Tensor) -> float | torch.Tensor:
        if self.key:
            bound: torch.Tensor = torch.ops.fxcompress.error_bound(x, self.key, self.eps)
            return bound
        if not self.relative:
            return self.eps
        values = x.to(torch.float32)
        finite = values.abs() <= LARGEST
        # Divided by the largest first: squares of large numbers overflow, those of small ones vanish.
        known = torch.where(finite, values, 0.0)
        largest = known.abs().amax(-1, keepdim=True).clamp_min(live.SMALLEST)
        scaled = known / largest
        mean = scaled.square().sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp_min(1)
        return (mean.sqrt() * largest * self.eps).clamp(live.SMALLEST, live.LARGEST)
