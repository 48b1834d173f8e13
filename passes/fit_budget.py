"""Keep or encode each saved storage so that the predicted peak fits a limit, at the least modelled time.

`fit_budget(fw, bw, storages, choice, …)` takes what `choose` would encode and decides which of it to encode: a storage
stays as it is, takes the codec chosen, or takes 8 bits where fewer were chosen. Read-only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxcompress import codecs, costs
from fxcompress.passes.alias import Storage
from fxcompress.passes.choose import Choice, Encoding, decision_of
from fxcompress.passes.codec_memory import working_sizes
from fxcompress.passes.find_saved import outputs, placeholders
from fxcompress.passes.lifetimes import Group, Lifetime, find_lifetimes
from fxcompress.passes.liveness import Machine
from fxcompress.passes.phases import phase_of
from fxcompress.plan import Decision
from fxcompress.solve.allocate import allocate, cheapened
from fxcompress.solve.repair import lowest_peak
from fxcompress.solve.slots import Option

ERROR_WEIGHT = 10.0
"""Steps that a relative gradient variance of 1 is worth: an error of 10 % (a variance of 0.01) costs a tenth of one."""
VARIANCE = {1: 3.6, 2: 0.40, 4: 0.016, 8: 1e-4}
"""‖decode(encode(x)) - x‖² / ‖x‖² of normal numbers at each width, groups of 64 or 128."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The choice that fits, what it costs, and the least that any choice for this pair could cost that fits as well.

    Where the limit is out of reach, that is: any choice with a peak as low.
    """

    choice: Choice
    code_s: float
    bound_s: float
    lowest_peak_bytes: int


def code_cost_s(nbytes: int, packed_bytes: int, bits: float | None, error_s: float, rates: costs.Rates) -> float:
    """Seconds of encoding and decoding one storage, and of its error if it is lossy (`bits` is then given).

    Args:
        nbytes, packed_bytes: whole and packed.
        bits: width of a lossy code, None for an exact one.
        error_s: seconds that a relative variance of 1 in this storage is worth.
        rates: of the device.
    """
    seconds = costs.code_s(nbytes, packed_bytes, bits is not None and bits < 8, rates)
    return seconds if bits is None else seconds + error_s * VARIANCE.get(int(bits), 0.0)


def fit_budget(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    storages: Sequence[Storage],
    choice: Choice,
    *,
    limit_bytes: int,
    machine: Machine,
    step_s: float,
    error_s_per_byte: float | None = None,
) -> Fitted:
    """Choose among keeping and encoding.

    Args:
        fw, bw: the pair, not rewritten yet.
        storages: the saved storages.
        choice: what `choose` decided without a limit.
        limit_bytes: the predicted peak to stay below. Where that is out of reach, the cheapest choice found with the
            lowest peak found is taken; with 0 the first one found, which encodes more and may run lower than predicted.
        machine: how the pair is run.
        step_s: modelled seconds of the whole step, against which errors are weighed.
        error_s_per_byte: what a relative variance of 1 is worth per byte, where several cuts are compared; None: such
            that it is worth `ERROR_WEIGHT` steps in everything that may be encoded.
    """
    encodings = {encoding.storage.root: encoding for encoding in choice.encodings}
    free = [storage for storage in storages if not storage.held_by]
    groups = groups_of(fw, bw, free)
    lifetimes = find_lifetimes(phase_of(fw), phase_of(bw), groups, machine)
    total = sum(encodings[s.root].storage.nbytes for s in free if s.root in encodings)
    error_s = ERROR_WEIGHT * step_s / max(total, 1) if error_s_per_byte is None else error_s_per_byte
    ways = [_ways(encodings.get(storage.root), machine) for storage in free]
    items = [
        [option_of(way, lifetime, machine, error_s) for way in options]
        for options, lifetime in zip(ways, lifetimes.storages, strict=True)
    ]
    found = allocate(items, lifetimes.rest_bytes, limit_bytes)
    if not found.fits:
        near = cheapened(items, lifetimes.rest_bytes, found)
        found = near if limit_bytes else replace(found, bound=near.bound)
    taken = {s.root: options[r] for s, options, r in zip(free, ways, found.chosen, strict=True)}
    lowest = lowest_peak(items, lifetimes.rest_bytes)
    return Fitted(_narrowed(choice, taken), found.cost, found.bound, lowest)


def groups_of(fw: fx.GraphModule, bw: fx.GraphModule, storages: Sequence[Storage]) -> list[Group]:
    """The nodes of each storage: outputs of the forward, inputs of the backward."""
    taken = {node.name: node for node in placeholders(bw)}
    given = {node.name: node for node in outputs(fw) if isinstance(node, fx.Node)}
    return [
        Group(
            tuple(given[pair.fw.name] for pair in storage.members),
            tuple(taken[pair.bw.name] for pair in storage.members),
        )
        for storage in storages
    ]


def _ways(encoding: Encoding | None, machine: Machine) -> list[Encoding | None]:
    """Keep it; encode it with 8 bits; encode it as chosen. Masks are packed in any case, where that is compiled."""
    if encoding is None:
        return [None]
    if machine.fused and encoding.source.meta["val"].dtype is torch.bool:
        return [encoding]
    params = codecs.params(encoding.codec)
    wide = {**params, "bits": 8, "group": 0, "rounding": "nearest"}
    if encoding.codec.name != "affine" or params["bits"] == 8:
        return [None, encoding]
    return [None, replace(encoding, codec=codecs.make("affine", **wide)), encoding]


def option_of(way: Encoding | None, lifetime: Lifetime, machine: Machine, error_s_per_byte: float = 0.0) -> Option:
    """Keeping a storage (None) or encoding it, as an option of the allocation: modelled seconds, and live bytes."""
    if way is None:
        return Option(0.0, tuple(lifetime.kept()))
    val = way.source.meta["val"]
    packed = way.nbytes
    bits = None if way.codec.contract.kind == "exact" else way.codec.bits
    rates = costs.rates_of(val.device, fused=machine.fused)
    seconds = code_cost_s(lifetime.nbytes, packed, bits, error_s_per_byte * lifetime.nbytes, rates)
    working = None if machine.fused else working_sizes(way.codec, val.dtype)
    return Option(seconds, tuple(lifetime.encoded(packed, working)))


def _narrowed(choice: Choice, taken: dict[fx.Node, Encoding | None]) -> Choice:
    """The choice with the encodings that were taken, and decisions that say so."""
    encodings = tuple(way for e in choice.encodings if (way := taken.get(e.storage.root, e)) is not None)
    first = {e.storage.members[0].bw.name: taken.get(e.storage.root, e) for e in choice.encodings}
    decisions = tuple(
        _redecided(decision, first[decision.tensor.name]) if decision.tensor.name in first else decision
        for decision in choice.decisions
    )
    return Choice(decisions, encodings)


def _redecided(decision: Decision, way: Encoding | None) -> Decision:
    return decision_of(decision.tensor, way, decision.reason if way is not None else "the budget is met without")
