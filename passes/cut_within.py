"""Choose where to cut a joint graph so that the predicted peak fits a limit, at the least modelled time.

`cut_within(joint, …)` makes PyTorch's own cuts and ours at a range of prices per byte (`find_cuts`), finds for each the
cheapest representations that fit (`allocate` on its `lifetimes`), and ranks the cuts: those that fit by their seconds,
then the others by their peak. What can be encoded is estimated here from operators and dtypes; the exact needs are
known after the cut. Read-only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress import compat, costs
from fxcompress.options import Options
from fxcompress.passes.alias import distinct_nbytes, nbytes_of, storage_key
from fxcompress.passes.demand import is_statistic
from fxcompress.passes.find_cuts import Way, find_cuts, tensor_of
from fxcompress.passes.find_masked import find_masked
from fxcompress.passes.find_rules import rule_for
from fxcompress.passes.fit_budget import ERROR_WEIGHT, code_cost_s
from fxcompress.passes.lifetimes import Group, Lifetime, find_lifetimes
from fxcompress.passes.liveness import Machine
from fxcompress.passes.ops import is_random, is_view, op_name
from fxcompress.passes.phases import Phase, cut_phases
from fxcompress.passes.values import Known, find_values
from fxcompress.solve.allocate import allocate
from fxcompress.solve.repair import lowest_peak
from fxcompress.solve.slots import Option

PRICES = tuple(4.0**exponent for exponent in range(-4, 6))
"""Prices per byte tried, in units of the step's time over the bytes that PyTorch's cut saves."""
_RANDOM_PASSES = 8.0
"""Generating random numbers again takes as long as this many passes over memory."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut, with what it is predicted to need. `recompute_s` counts from PyTorch's own cut."""

    name: str
    saved: tuple[fx.Node, ...]
    lowest_peak_bytes: int
    recompute_s: float
    code_s: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Cuts:
    """All cuts, the best first; what PyTorch's own saves and its peak, unencoded; modelled seconds of the step."""

    ranked: tuple[Cut, ...]
    plain_saved_bytes: int
    plain_peak_bytes: int
    step_s: float


@dataclass(frozen=True, slots=True)
class _Model:
    """What the estimates need of the joint graph."""

    joint: fx.Graph
    num_fwd_outputs: int
    machine: Machine
    rates: costs.Rates
    seconds: Mapping[fx.Node, float]
    step_s: float
    packed: Mapping[fx.Node, tuple[int, float | None]]
    """Per value that a codec takes: payload bytes and the width if it is lossy."""
    error_s_per_byte: float


def cut_within(
    gm: fx.GraphModule,
    info: compat.NodeInfo,
    torch_choice: Callable[[bool], list[fx.Node]],
    options: Options,
    limit_of: Callable[[int], int],
    num_fwd_outputs: int,
    machine: Machine,
) -> Cuts:
    """Rank the cuts of a joint graph.

    Args:
        gm: the joint graph.
        info: PyTorch's classification of its nodes.
        torch_choice: what PyTorch saves, by whether it may rebuild more than by default.
        options: widths and floor of what may be encoded.
        limit_of: the limit in bytes, from the predicted peak of PyTorch's own cut.
        num_fwd_outputs: how many outputs of the joint graph are the user's.
        machine: how the graphs will be run.
    """
    plain, relaxed = torch_choice(False), torch_choice(True)
    model = _model(gm, plain, options, num_fwd_outputs, machine)
    before = _peak_kept(model, plain)
    limit = limit_of(before)
    named = [("PyTorch's", plain), ("PyTorch's, rebuilding more", relaxed), *_own(model, info, plain)]
    base_s = _recompute_s(model, *_phases(model, plain))
    distinct = {frozenset(saved): (name, saved) for name, saved in reversed(named)}
    cuts = [_evaluate(model, name, saved, limit, base_s) for name, saved in reversed(distinct.values())]
    return Cuts(tuple(sorted(cuts, key=_rank)), saved_nbytes(plain), before, model.step_s)


def saved_nbytes(saved: Sequence[fx.Node]) -> int:
    """Bytes of the distinct storages among values to save."""
    return distinct_nbytes([node for node in saved if isinstance(node.meta.get("val"), torch.Tensor)])


def _rank(cut: Cut) -> tuple[bool, float]:
    return not cut.fits, cut.recompute_s + cut.code_s if cut.fits else float(cut.lowest_peak_bytes)


def _own(model: _Model, info: compat.NodeInfo, plain: Sequence[fx.Node]) -> list[tuple[str, list[fx.Node]]]:
    """Our cuts, from cheap bytes to dear ones; symbolic sizes and opaque values are PyTorch's to place."""
    bytes_saved = sum(nbytes_of(val) for node in plain if (val := tensor_of(node)) is not None)
    unit = model.step_s / max(bytes_saved, 1)
    ways = {node: _ways(model, node) for node in model.joint.nodes if node.op != "output"}
    prices = [unit * price for price in PRICES]
    try:
        cuts = find_cuts(model.joint, info, ways, model.seconds, prices)
    except ValueError:
        return []
    return [(f"ours at {price:g}", cut) for price, cut in zip(PRICES, cuts, strict=True)]


def _model(
    gm: fx.GraphModule, plain: Sequence[fx.Node], options: Options, num_fwd_outputs: int, machine: Machine
) -> _Model:
    device = next((val.device for node in plain if (val := tensor_of(node)) is not None), torch.device("cpu"))
    rates = costs.rates_of(device)
    seconds = {node: _seconds(node, rates) for node in gm.graph.nodes if node.op == "call_function"}
    values, masked = find_values(gm), find_masked(gm)
    packed = {}
    for node in gm.graph.nodes:
        size = None if node in masked else _packed(node, values, options)
        if size is not None:
            packed[node] = size
    step_s = sum(seconds.values())
    total = sum(nbytes_of(val) for node in plain if (val := tensor_of(node)) is not None)
    error = ERROR_WEIGHT * step_s / max(total, 1)
    return _Model(gm.graph, num_fwd_outputs, machine, rates, seconds, step_s, packed, error)


def _seconds(node: fx.Node, rates: costs.Rates) -> float:
    val = tensor_of(node)
    if is_random(node) and val is not None:
        return _RANDOM_PASSES * nbytes_of(val) / rates.bytes_per_s
    return costs.recompute_s(node, rates)


def _packed(node: fx.Node, values: Known, options: Options) -> tuple[int, float | None] | None:
    """Payload bytes of a value under the options, and the width if lossy; None if no codec takes it."""
    val = tensor_of(node)
    if node.op != "call_function" or val is None or nbytes_of(val) < options.min_bytes:
        return None
    ruled = rule_for(node, options)
    if ruled.keep:
        return None
    numel = nbytes_of(val) // val.element_size()
    known = values.get(node)
    if known is not None and known.finite:
        size = numel * max((known.count - 1).bit_length(), 1) // 8
        return (size, None) if size < nbytes_of(val) else None
    if not ruled.options.lossy or not val.dtype.is_floating_point or is_statistic(node):
        return None
    bits = float(max(ruled.options.bits, ruled.options.operand_bits))
    size = int(numel * (bits / 8 + 4 / 128))
    return (size, bits) if size < nbytes_of(val) else None


def _ways(model: _Model, node: fx.Node) -> tuple[Way, ...]:
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
    if node not in model.packed:
        return (Way(0.0, nbytes),)
    size, bits = model.packed[node]
    cost = code_cost_s(nbytes, size, bits, model.error_s_per_byte * nbytes, model.rates)
    return (Way(0.0, nbytes), Way(cost, size))


def _is_element(node: fx.Node) -> bool:
    """A tensor taken from an operator's tuple of results, which is no view of anything saved otherwise."""
    source = node.args[0]
    return op_name(node) == "getitem" and isinstance(source, fx.Node) and not is_view(source)


def _phases(model: _Model, saved: Sequence[fx.Node]) -> tuple[Phase, Phase]:
    return cut_phases(model.joint, saved, model.num_fwd_outputs)


def _recompute_s(model: _Model, forward: Phase, backward: Phase) -> float:
    return sum(model.seconds.get(node, 0.0) for node in backward.nodes if node in forward.members)


def _groups(saved: Sequence[fx.Node], forward: Phase, num_fwd_outputs: int) -> list[Group]:
    """Saved storages that the caller does not hold."""
    held = {storage_key(node) for node in (*forward.inputs, *forward.returned[:num_fwd_outputs])}
    found: dict[int, list[fx.Node]] = {}
    for node in saved:
        key = storage_key(node)
        if key is not None and key not in held:
            found.setdefault(key, []).append(node)
    return [Group(tuple(nodes), tuple(nodes)) for nodes in found.values()]


def _peak_kept(model: _Model, saved: Sequence[fx.Node]) -> int:
    forward, backward = _phases(model, saved)
    groups = _groups(saved, forward, _user_count(model))
    lifetimes = find_lifetimes(forward, backward, groups, model.machine)
    kept = [[Option(0.0, tuple(lifetime.kept()))] for lifetime in lifetimes.storages]
    return lowest_peak(kept, lifetimes.rest_bytes)


def _user_count(model: _Model) -> int:
    """User outputs that are nodes: `Phase.returned` leaves others out."""
    (end,) = model.joint.find_nodes(op="output")
    return sum(isinstance(item, fx.Node) for item in end.args[0][: model.num_fwd_outputs])


def _evaluate(model: _Model, name: str, saved: Sequence[fx.Node], limit: int, base_s: float) -> Cut:
    forward, backward = _phases(model, saved)
    groups = _groups(saved, forward, _user_count(model))
    lifetimes = find_lifetimes(forward, backward, groups, model.machine)
    items = [_options(model, group, lifetime) for group, lifetime in zip(groups, lifetimes.storages, strict=True)]
    found = allocate(items, lifetimes.rest_bytes, limit, nodes=0)
    lowest = lowest_peak(items, lifetimes.rest_bytes)
    extra = _recompute_s(model, forward, backward) - base_s
    return Cut(name, tuple(saved), lowest, extra, found.cost, found.fits)


def _options(model: _Model, group: Group, lifetime: Lifetime) -> list[Option]:
    keep = Option(0.0, tuple(lifetime.kept()))
    known = next((model.packed[node] for node in group.given if node in model.packed), None)
    if known is None:
        return [keep]
    size, bits = known
    cost = code_cost_s(lifetime.nbytes, size, bits, model.error_s_per_byte * lifetime.nbytes, model.rates)
    return [keep, Option(cost, tuple(lifetime.encoded(size, interpreted=not model.machine.fused)))]
