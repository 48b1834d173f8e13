"""How each value of a joint graph could be encoded, estimated from operators, dtypes and options.

`Packer(…).ways(node)` lists the codecs that would take a value, with what they cost. What the backward needs of a value
is known for a given cut only (`find_sources`). Read-only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from fxcompress import codecs, costs
from fxcompress.codecs.base import Codec
from fxcompress.options import Options
from fxcompress.passes.alias import nbytes_of
from fxcompress.passes.codec_memory import working_sizes
from fxcompress.passes.find_cuts import tensor_of
from fxcompress.passes.find_rules import rule_for
from fxcompress.passes.find_statistics import is_statistic
from fxcompress.passes.fit_budget import code_cost_s
from fxcompress.passes.liveness import Machine
from fxcompress.passes.ops import GEMMS, is_attention, op_name
from fxcompress.passes.phases import Phase
from fxcompress.passes.pick_codec import ATTENTION_BITS
from fxcompress.passes.value_sets import ValueSet
from fxcompress.passes.values import Known

_METADATA_BITS = 32 / 128
"""Per element, of groups with a word of metadata each."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a value could be encoded: payload bytes, seconds with what its error is weighed at, and what an interpreted
    encode and decode take besides, in sizes of the value.

    `for_products`, `for_derivatives`, `for_attention`: whether the options let what products, what nothing but
    pointwise derivatives, and what attention's derivatives are computed from be stored so.
    """

    nbytes: int
    seconds: float
    working: tuple[float, float] | None
    for_products: bool = True
    for_derivatives: bool = True
    for_attention: bool = True


@dataclass(frozen=True, slots=True)
class Packer:
    """How values could be encoded under the options."""

    values: Known
    masked: set[fx.Node]
    options: Options
    machine: Machine
    rates: costs.Rates
    error_s_per_byte: float
    statistics: dict[fx.Node, bool] = field(default_factory=dict)
    found: dict[object, tuple[Packing, ...]] = field(default_factory=dict)
    """Of values of one kind, size and dtype: layers are alike."""

    def ways(self, node: fx.Node) -> tuple[Packing, ...]:
        """The ways to encode the value of `node`, none if no codec takes it."""
        val = tensor_of(node)
        if node in self.masked or node.op != "call_function" or val is None or nbytes_of(val) < self.options.min_bytes:
            return ()
        ruled, known = rule_for(node, self.options), self.values.get(node)
        if ruled.keep:
            return ()
        if known is not None and known.finite:
            return self._alike(val, known)
        if not ruled.options.lossy or not val.dtype.is_floating_point or is_statistic(node, self.statistics):
            return ()
        return self._alike(val, (ruled.options.bits, ruled.options.operand_bits))

    def _alike(self, val: torch.Tensor, form: tuple[int, int] | ValueSet) -> tuple[Packing, ...]:
        """How a value is encoded that is one of finitely many, or that lossy codes of two widths may hold."""
        key = form, nbytes_of(val), val.dtype
        if key not in self.found:
            self.found[key] = self._exact(val, form) if isinstance(form, ValueSet) else self._lossy(val, *form)
        return self.found[key]

    def _exact(self, val: torch.Tensor, known: ValueSet) -> tuple[Packing, ...]:
        codec = codecs.make("valueset", lo=known.lo, step=known.step, count=max(known.count, 2))
        return self._way(val, codec, max((known.count - 1).bit_length(), 1), None)

    def _lossy(self, val: torch.Tensor, bits: int, operand_bits: int) -> tuple[Packing, ...]:
        found: list[Packing] = []
        for width in sorted({bits, operand_bits, 8}):
            rounding = {"rounding": "nearest"} if width == 8 else {}
            way = self._way(val, codecs.make("affine", bits=width, **rounding), width + _METADATA_BITS, width)
            products, derivatives = width >= operand_bits, width >= bits
            attention = products and width >= ATTENTION_BITS
            found += (
                replace(p, for_products=products, for_derivatives=derivatives, for_attention=attention) for p in way
            )
        return tuple(found)

    def _way(self, val: torch.Tensor, codec: Codec, bits: float, lossy: int | None) -> tuple[Packing, ...]:
        """`bits` per element are stored; `lossy` is the width of a lossy code."""
        nbytes = nbytes_of(val)
        size = int(nbytes // val.element_size() * bits / 8)
        if size >= nbytes or codec.refuse(val.dtype):
            return ()
        seconds = code_cost_s(nbytes, size, lossy, self.error_s_per_byte * nbytes, self.rates)
        return (Packing(size, seconds, None if self.machine.fused else working_sizes(codec, val.dtype)),)


def find_sources(
    forward: Phase, backward: Phase, saved: Sequence[fx.Node], reads: Callable[[fx.Node], bool]
) -> set[fx.Node]:
    """Values from which the backward gets arguments of nodes that `reads` names, directly or through what it computes
    again."""
    found: set[fx.Node] = set()
    again = [node for node in backward.nodes if node in forward.members]
    for node in (*reversed(again), *saved):
        if any(reads(user) or user in found for user in backward.users(node)):
            found.add(node)
    return found


def multiplies(node: fx.Node) -> bool:
    """Whether a product reads its arguments."""
    name = op_name(node)
    return name in GEMMS or name in ("convolution", "convolution_backward") or is_attention(node)
