"""Estimate what a training step needs if a joint graph is cut at given values.

`make_model(gm, …)` gathers what every estimate needs; `Model.sketch` says what a set of saved values makes the backward
compute again, `Sketch.estimate` takes its live bytes apart into saved storages and the rest, and `Estimate.fit` finds
the cheapest representations that fit a limit. What can be encoded is estimated from operators and dtypes; the exact
needs are known after the cut. Read-only.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import fx

from fxcompress import costs
from fxcompress.options import Options
from fxcompress.passes.alias import distinct_nbytes, nbytes_of, storage_key
from fxcompress.passes.find_cuts import Way, Ways, tensor_of
from fxcompress.passes.find_masked import find_masked, learned_inputs
from fxcompress.passes.fit_budget import ERROR_WEIGHT
from fxcompress.passes.lifetimes import Group, Lifetime, Lifetimes, find_lifetimes
from fxcompress.passes.liveness import Machine
from fxcompress.passes.ops import is_attention, is_random, is_view, op_name
from fxcompress.passes.pack_values import Packer, Packing, find_sources, multiplies
from fxcompress.passes.phases import Known as Traits
from fxcompress.passes.phases import Phase, cut_phases, is_forward_input
from fxcompress.passes.same_place import readers_of
from fxcompress.passes.values import find_values
from fxcompress.solve.allocate import Allocation, allocate
from fxcompress.solve.repair import lowest_peak
from fxcompress.solve.slots import Option, curve_of

OWN = "PyTorch's"
"""Name of its default cut."""
REBUILT = "PyTorch's, rebuilding more"
"""Name of the cut that is taken without a budget."""
_RANDOM_PASSES = 8.0
"""Generating random numbers again takes as long as this many passes over memory."""


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
    error_s_per_byte: float
    """What a relative variance of 1 is weighed at, per byte of the value that has it."""
    packed: Mapping[fx.Node, tuple[Packing, ...]]
    """Per value that codecs take, how."""
    traits: Traits = field(default_factory=dict, compare=False, repr=False)
    stored: frozenset[fx.Node] = frozenset()
    """What `store_sums` will have written to memory."""

    def sketch(self, name: str, saved: Sequence[fx.Node]) -> "Sketch":
        """What runs in which half if exactly `saved` is handed over."""
        forward, backward = cut_phases(self.joint, saved, self.num_fwd_outputs, self.traits, self.stored)
        again = sum((self.seconds.get(node, 0.0) for node in backward.nodes if node in forward.members), 0.0)
        return Sketch(self, name, tuple(saved), forward, backward, again)

    def with_inputs(self, saved: Set[fx.Node]) -> list[fx.Node]:
        """`saved` in the graph's order, with those of the forward's inputs that its backward would read besides."""
        (_, backward) = cut_phases(self.joint, tuple(saved), self.num_fwd_outputs, self.traits)
        read = {source for node in backward.nodes for source in node.all_input_nodes if is_forward_input(source)}
        return [node for node in self.joint.nodes if node in saved or node in read]

    def gradients(self) -> frozenset[fx.Node]:
        """What can only run in a backward."""
        outside = frozenset(self.sketch("", ()).forward.members)
        return frozenset(self.joint.nodes) - outside

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
        operands = find_sources(self.forward, self.backward, self.saved, multiplies)
        attended = find_sources(self.forward, self.backward, self.saved, is_attention)
        paired = zip(groups, lifetimes.storages, strict=True)
        return Estimate(self, lifetimes, [_options(self.model, *pair, operands, attended) for pair in paired])


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
    error_s = ERROR_WEIGHT * step_s / max(total, 1)
    (end,) = gm.graph.find_nodes(op="output")
    inputs = list(filter(is_forward_input, gm.graph.find_nodes(op="placeholder")))
    masked = find_masked(gm, learned_inputs(inputs, end.args[0][num_fwd_outputs:]))
    packer = Packer(find_values(gm), masked, options, machine, rates, error_s)
    packed = {node: ways for node in gm.graph.nodes if (ways := packer.ways(node))}
    users = sum(isinstance(item, fx.Node) for item in end.args[0][:num_fwd_outputs])
    return Model(gm.graph, num_fwd_outputs, users, machine, seconds, step_s, error_s, packed)


def saved_nbytes(saved: Sequence[fx.Node]) -> int:
    """Bytes of the distinct storages among values to save."""
    return distinct_nbytes([node for node in saved if isinstance(node.meta.get("val"), torch.Tensor)])


def _seconds(node: fx.Node, rates: costs.Rates) -> float:
    val = tensor_of(node)
    if is_random(node) and val is not None:
        return _RANDOM_PASSES * nbytes_of(val) / rates.bytes_per_s
    return costs.recompute_s(node, rates)


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
    known = [p for p in model.packed.get(node, ()) if p.for_products and p.for_derivatives]
    if _is_attended(node):
        known = [p for p in known if p.for_attention]
    packed = [Way(p.seconds, p.nbytes, _scaled(p.working, nbytes)) for p in known]
    return (Way(0.0, nbytes), *packed)


def _scaled(working: tuple[float, float] | None, nbytes: int) -> tuple[int, int]:
    encode, decode = working or (0.0, 0.0)
    return int(encode * nbytes), int(decode * nbytes)


def _is_element(node: fx.Node) -> bool:
    """A tensor taken from an operator's tuple of results, which is no view of anything saved otherwise."""
    source = node.args[0]
    return op_name(node) == "getitem" and isinstance(source, fx.Node) and not is_view(source)


def _is_attended(node: fx.Node) -> bool:
    """Whether attention reads the value, or a view of it."""
    return any(map(is_attention, readers_of(node)))


def _groups(saved: Sequence[fx.Node], forward: Phase, num_fwd_outputs: int) -> list[Group]:
    """Saved storages that the caller does not hold."""
    held = {storage_key(node) for node in (*forward.inputs, *forward.returned[:num_fwd_outputs])}
    found: dict[int, list[fx.Node]] = {}
    for node in saved:
        key = storage_key(node)
        if key is not None and key not in held:
            found.setdefault(key, []).append(node)
    return [Group(tuple(nodes), tuple(nodes)) for nodes in found.values()]


def _options(
    model: Model, group: Group, lifetime: Lifetime, operands: Set[fx.Node], attended: Set[fx.Node]
) -> list[Option]:
    keep = Option(0.0, tuple(lifetime.kept()))
    admitted = next((model.packed[node] for node in group.given if node in model.packed), ())
    if not attended.isdisjoint(group.given):
        admitted = tuple(p for p in admitted if p.for_attention)
    elif not operands.isdisjoint(group.given):
        admitted = tuple(p for p in admitted if p.for_products)
    else:
        admitted = tuple(p for p in admitted if p.for_derivatives)
    return [keep, *(Option(p.seconds, tuple(lifetime.encoded(p.nbytes, p.working))) for p in admitted)]
