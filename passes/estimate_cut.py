"""Estimate what a training step needs if a joint graph is cut at given values.

`make_model(gm, …)` gathers what every estimate needs; `Model.sketch` says what a set of saved values makes the backward
compute again, `Sketch.estimate` takes its live bytes apart into saved storages and the rest, and `Estimate.fit` finds
the cheapest representations that fit a limit. What can be encoded is estimated from operators and dtypes; the exact
needs are known after the cut. Read-only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fxcompress import codecs, costs
from fxcompress.codecs.base import Codec
from fxcompress.options import Options
from fxcompress.passes.alias import distinct_nbytes, nbytes_of, storage_key
from fxcompress.passes.codec_memory import working_sizes
from fxcompress.passes.demand import is_statistic
from fxcompress.passes.find_cuts import Way, Ways, tensor_of
from fxcompress.passes.find_masked import find_masked
from fxcompress.passes.find_rules import rule_for
from fxcompress.passes.fit_budget import ERROR_WEIGHT, code_cost_s
from fxcompress.passes.lifetimes import Group, Lifetime, Lifetimes, find_lifetimes
from fxcompress.passes.liveness import Machine
from fxcompress.passes.ops import is_random, is_view, op_name
from fxcompress.passes.phases import Known as Traits
from fxcompress.passes.phases import Phase, cut_phases
from fxcompress.passes.value_sets import ValueSet
from fxcompress.passes.values import Known, find_values
from fxcompress.solve.allocate import Allocation, allocate
from fxcompress.solve.repair import lowest_peak
from fxcompress.solve.slots import Option, curve_of

_METADATA_BITS = 32 / 128
"""Per element, of groups with a word of metadata each."""
_RANDOM_PASSES = 8.0
"""Generating random numbers again takes as long as this many passes over memory."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a value could be encoded: payload bytes, seconds with what its error is weighed at, and what an interpreted
    encode and decode take besides, in sizes of the value."""

    nbytes: int
    seconds: float
    working: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Model:
    """What the estimates need of the joint graph."""

    joint: fx.Graph
    num_fwd_outputs: int
    user_nodes: int
    """User outputs that are nodes: `Phase.returned` leaves others out."""
    machine: Machine
    seconds: Mapping[fx.Node, float]
    step_s: float
    packed: Mapping[fx.Node, tuple["Packing", ...]]
    """Per value that codecs take, how."""
    traits: Traits = field(default_factory=dict, compare=False, repr=False)

    def sketch(self, name: str, saved: Sequence[fx.Node]) -> "Sketch":
        """What runs in which half if exactly `saved` is handed over."""
        forward, backward = cut_phases(self.joint, saved, self.num_fwd_outputs, self.traits)
        again = sum(self.seconds.get(node, 0.0) for node in backward.nodes if node in forward.members)
        return Sketch(self, name, tuple(saved), forward, backward, again)

    def ways(self) -> Ways:
        """How each value could be saved."""
        return {node: _ways(self, node) for node in self.joint.nodes if node.op != "output"}


@dataclass(frozen=True, slots=True)
class Sketch:
    """A cut without its memory. `recompute_s`: seconds that its backward computes forward values for."""

    model: Model
    name: str
    saved: tuple[fx.Node, ...]
    forward: Phase
    backward: Phase
    recompute_s: float

    def estimate(self) -> "Estimate":
        """Take its live bytes apart."""
        groups = _groups(self.saved, self.forward, self.model.user_nodes)
        lifetimes = find_lifetimes(self.forward, self.backward, groups, self.model.machine)
        paired = zip(groups, lifetimes.storages, strict=True)
        return Estimate(self, lifetimes, [_options(self.model, group, lifetime) for group, lifetime in paired])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A cut with its live bytes: for each saved storage the ways to keep it, the first one as it is."""

    sketch: Sketch
    lifetimes: Lifetimes
    items: list[list[Option]]

    def peak_kept(self) -> int:
        """The peak if nothing is encoded."""
        return lowest_peak([options[:1] for options in self.items], self.lifetimes.rest_bytes)

    def lowest_peak(self) -> int:
        """The lowest peak found, whatever it costs."""
        return lowest_peak(self.items, self.lifetimes.rest_bytes)

    def peak_slot(self, chosen: Sequence[int]) -> int:
        """When the peak stands under a choice of the ways."""
        curve = curve_of(self.items, self.lifetimes.rest_bytes, chosen)
        return max(range(len(curve)), key=curve.__getitem__)

    def fit(self, limit_bytes: int) -> Allocation:
        """The cheapest representations found that fit."""
        return allocate(self.items, self.lifetimes.rest_bytes, limit_bytes, nodes=0)


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut, with what it is predicted to need. `recompute_s` counts from PyTorch's own cut."""

    name: str
    saved: tuple[fx.Node, ...]
    lowest_peak_bytes: int
    recompute_s: float
    code_s: float
    fits: bool

    @property
    def seconds(self) -> float:
        """What it costs above PyTorch's own cut."""
        return self.recompute_s + self.code_s


def make_model(
    gm: fx.GraphModule, plain: Sequence[fx.Node], options: Options, num_fwd_outputs: int, machine: Machine
) -> Model:
    """Gather it.

    Args:
        gm: the joint graph.
        plain: what PyTorch saves.
        options: widths and floor of what may be encoded.
        num_fwd_outputs: how many outputs of the joint graph are the user's.
        machine: how the graphs will be run.
    """
    device = next((val.device for node in plain if (val := tensor_of(node)) is not None), torch.device("cpu"))
    rates = costs.rates_of(device, fused=machine.fused)
    seconds = {node: _seconds(node, rates) for node in gm.graph.nodes if node.op == "call_function"}
    step_s = sum(seconds.values())
    total = sum(nbytes_of(val) for node in plain if (val := tensor_of(node)) is not None)
    packer = _Packer(find_values(gm), find_masked(gm), options, machine, rates, ERROR_WEIGHT * step_s / max(total, 1))
    packed = {node: ways for node in gm.graph.nodes if (ways := packer.ways(node))}
    (end,) = gm.graph.find_nodes(op="output")
    users = sum(isinstance(item, fx.Node) for item in end.args[0][:num_fwd_outputs])
    return Model(gm.graph, num_fwd_outputs, users, machine, seconds, step_s, packed)


def saved_nbytes(saved: Sequence[fx.Node]) -> int:
    """Bytes of the distinct storages among values to save."""
    return distinct_nbytes([node for node in saved if isinstance(node.meta.get("val"), torch.Tensor)])


def _seconds(node: fx.Node, rates: costs.Rates) -> float:
    val = tensor_of(node)
    if is_random(node) and val is not None:
        return _RANDOM_PASSES * nbytes_of(val) / rates.bytes_per_s
    return costs.recompute_s(node, rates)


@dataclass(frozen=True, slots=True)
class _Packer:
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
        return self._alike(val, max(ruled.options.bits, ruled.options.operand_bits))

    def _alike(self, val: torch.Tensor, form: int | ValueSet) -> tuple[Packing, ...]:
        """How a value is encoded that is one of finitely many, or that lossy codes of so many bits may hold."""
        key = form, nbytes_of(val), val.dtype
        if key not in self.found:
            self.found[key] = self._exact(val, form) if isinstance(form, ValueSet) else self._lossy(val, form)
        return self.found[key]

    def _exact(self, val: torch.Tensor, known: ValueSet) -> tuple[Packing, ...]:
        codec = codecs.make("valueset", lo=known.lo, step=known.step, count=max(known.count, 2))
        return self._way(val, codec, max((known.count - 1).bit_length(), 1), None)

    def _lossy(self, val: torch.Tensor, bits: int) -> tuple[Packing, ...]:
        wide = self._way(val, codecs.make("affine", bits=8, rounding="nearest"), 8 + _METADATA_BITS, 8)
        chosen = self._way(val, codecs.make("affine", bits=bits), bits + _METADATA_BITS, bits)
        return wide if bits == 8 else (*chosen, *wide)

    def _way(self, val: torch.Tensor, codec: Codec, bits: float, lossy: int | None) -> tuple[Packing, ...]:
        """`bits` per element are stored; `lossy` is the width of a lossy code."""
        nbytes = nbytes_of(val)
        size = int(nbytes // val.element_size() * bits / 8)
        if size >= nbytes or codec.refuse(val.dtype):
            return ()
        seconds = code_cost_s(nbytes, size, lossy, self.error_s_per_byte * nbytes, self.rates)
        return (Packing(size, seconds, None if self.machine.fused else working_sizes(codec, val.dtype)),)


def _ways(model: Model, node: fx.Node) -> tuple[Way, ...]:
    """How a value could be saved: as it is, or encoded; views are not saved, only what they view."""
    val = node.meta.get("val")
    if node.op == "placeholder":
        return (Way(0.0, 0),)
    if isinstance(val, torch.SymInt) or not isinstance(val, (torch.Tensor, tuple, list, torch.SymFloat, torch.SymBool)):
        return (Way(0.0, 1),)
    tensor = tensor_of(node)
    if tensor is None or (is_view(node) and not _is_element(node)):
        return ()
    nbytes = nbytes_of(tensor)
    packed = [Way(p.seconds, p.nbytes, _scaled(p.working, nbytes)) for p in model.packed.get(node, ())]
    return (Way(0.0, nbytes), *packed)


def _scaled(working: tuple[float, float] | None, nbytes: int) -> tuple[int, int]:
    encode, decode = working or (0.0, 0.0)
    return int(encode * nbytes), int(decode * nbytes)


def _is_element(node: fx.Node) -> bool:
    """A tensor taken from an operator's tuple of results, which is no view of anything saved otherwise."""
    source = node.args[0]
    return op_name(node) == "getitem" and isinstance(source, fx.Node) and not is_view(source)


def _groups(saved: Sequence[fx.Node], forward: Phase, num_fwd_outputs: int) -> list[Group]:
    """Saved storages that the caller does not hold."""
    held = {storage_key(node) for node in (*forward.inputs, *forward.returned[:num_fwd_outputs])}
    found: dict[int, list[fx.Node]] = {}
    for node in saved:
        key = storage_key(node)
        if key is not None and key not in held:
            found.setdefault(key, []).append(node)
    return [Group(tuple(nodes), tuple(nodes)) for nodes in found.values()]


def _options(model: Model, group: Group, lifetime: Lifetime) -> list[Option]:
    keep = Option(0.0, tuple(lifetime.kept()))
    known = next((model.packed[node] for node in group.given if node in model.packed), ())
    return [keep, *(Option(p.seconds, tuple(lifetime.encoded(p.nbytes, p.working))) for p in known)]
