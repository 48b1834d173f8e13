"""Choose the width of each saved storage so that the gradient's predicted error stays below a limit.

`fit_error(…)` takes what `choose` would encode and gives each storage the width that makes the whole cheapest: in saved
bytes, or under a budget in seconds of coding among the choices whose peak fits. A storage may also be kept as it is.
Read-only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxcompress.error_table import GraphErrors
from fxcompress.errors import AccuracyError, BudgetError, PlanError
from fxcompress.facts import SavedTensor
from fxcompress.options import Options
from fxcompress.passes.alias import Storage
from fxcompress.passes.choose import Choice, Encoding, decision_of, strictest
from fxcompress.passes.find_rules import find_rules
from fxcompress.passes.fit_budget import groups_of, option_of
from fxcompress.passes.lifetimes import find_lifetimes
from fxcompress.passes.liveness import Machine
from fxcompress.passes.phases import phase_of
from fxcompress.passes.pick_codec import pick_codec
from fxcompress.plan import KEEP, Accuracy, Decision
from fxcompress.solve.error_limit import Chosen, Way, cheapest, within_peak
from fxcompress.solve.repair import lowest_peak

WIDTHS = (8, 4, 2, 1)
"""Bits that are tried, where a storage's need class admits them."""
_LEAST_OPERAND = 2
"""As for the option `operand_bits`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store a storage: an encoding, or None to keep it, with the relative error that it adds."""

    encoding: Encoding | None
    rel_error: float


@dataclass(frozen=True, slots=True)
class FittedError:
    """The choice, how exact it is, and the lowest peak that was found reachable (0 without a budget).

    Where the budget cannot be kept by what is known before rewriting, the choice has that lowest peak.
    """

    choice: Choice
    accuracy: Accuracy
    lowest_peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Peak:
    """A budget to keep beside the limit on the error."""

    fw: fx.GraphModule
    bw: fx.GraphModule
    limit_bytes: int
    machine: Machine


def admitted(encoding: Encoding, saved: Mapping[str, SavedTensor], options: Options) -> list[Encoding]:
    """The encodings of one storage at the widths that its need class and its rule admit, the widest first.

    Args:
        encoding: what `choose` decided at the widest widths.
        saved: facts by the tensor's name.
        options: as for `choose`.
    """
    if encoding.codec.contract.kind == "exact":
        return [encoding]
    storage = encoding.storage
    ruled = find_rules([storage], options)[storage.root.name].options
    if ruled.bits != options.bits or ruled.operand_bits != options.operand_bits:
        return [encoding]
    need = strictest([saved[pair.bw.name].need for pair in storage.members])
    found: list[Encoding] = []
    for bits in WIDTHS:
        at = replace(ruled, bits=bits, operand_bits=max(bits, _LEAST_OPERAND))
        codec = pick_codec(need, at, encoding.source, encoding.order)[0]
        if codec not in [other.codec for other in found]:
            found.append(replace(encoding, codec=codec))
    return found


def fit_error(
    storages: Sequence[Storage],
    saved: Sequence[SavedTensor],
    choice: Choice,
    options: Options,
    errors: GraphErrors,
    limit: float,
    peak: Peak | None,
) -> FittedError:
    """Choose widths.

    Args:
        storages, saved: the saved tensors.
        choice: what `choose` decided at the widest widths.
        options: as for `choose`.
        errors: what each width does to the gradient.
        limit: of the whole gradient's relative error.
        peak: a budget, or None.

    Raises:
        BudgetError: no choice keeps the budget, and the one with the lowest peak does not keep the limit.
        AccuracyError: no choice that keeps the budget keeps the limit; without one, keeping everything is exact.
        PlanError: `errors` lacks a tensor or a width of this graph.
    """
    facts = {tensor.name: tensor for tensor in saved}
    encodings = {encoding.storage.root: encoding for encoding in choice.encodings}
    free = [storage for storage in storages if not storage.held_by]
    candidates = [_candidates(encodings.get(s.root), facts, options, errors) for s in free]
    lowest = 0
    if peak is None:
        found = cheapest([[_way(s, c) for c in own] for s, own in zip(free, candidates, strict=True)], limit**2)
    else:
        found, lowest = _within(free, candidates, peak, limit)
    taken = {s.members[0].bw.name: own[r] for s, own, r in zip(free, candidates, found.chosen, strict=True)}
    accuracy = Accuracy(limit, errors.gradient_norm, found.error**0.5, found.lowest**0.5, found.bound, found.cost)
    decisions = tuple(
        _decision(decision, taken[decision.tensor.name], limit) if decision.tensor.name in taken else decision
        for decision in choice.decisions
    )
    kept = {storage.root: own[r].encoding for storage, own, r in zip(free, candidates, found.chosen, strict=True)}
    picked = [kept.get(encoding.storage.root, encoding) for encoding in choice.encodings]
    return FittedError(Choice(decisions, tuple(e for e in picked if e is not None)), accuracy, lowest)


def _candidates(
    encoding: Encoding | None, saved: Mapping[str, SavedTensor], options: Options, errors: GraphErrors
) -> list[Candidate]:
    if encoding is None:
        return [Candidate(None, 0.0)]
    ways = [Candidate(each, _error_of(each, errors)) for each in admitted(encoding, saved, options)]
    return [Candidate(None, 0.0), *ways]


def _error_of(encoding: Encoding, errors: GraphErrors) -> float:
    if encoding.codec.contract.kind == "exact":
        return 0.0
    name = encoding.storage.members[0].bw.name
    known = next((tensor for tensor in errors.tensors if tensor.name == name), None)
    error = known.at(int(encoding.codec.bits)) if known is not None else None
    if error is None:
        raise PlanError(
            f"calibration: no error for {name!r} at {encoding.codec.bits:g} bits; calibrate again under equal options"
        )
    return error


def _way(storage: Storage, candidate: Candidate) -> Way:
    nbytes = storage.nbytes if candidate.encoding is None else candidate.encoding.nbytes
    return Way(float(nbytes), candidate.rel_error**2)


def _within(
    free: Sequence[Storage], candidates: Sequence[Sequence[Candidate]], peak: Peak, limit: float
) -> tuple[Chosen, int]:
    lifetimes = find_lifetimes(phase_of(peak.fw), phase_of(peak.bw), groups_of(peak.fw, peak.bw, free), peak.machine)
    items = [
        [option_of(candidate.encoding, lifetime, peak.machine) for candidate in own]
        for own, lifetime in zip(candidates, lifetimes.storages, strict=True)
    ]
    errors = [[candidate.rel_error**2 for candidate in own] for own in candidates]
    allocation, found = within_peak(items, errors, lifetimes.rest_bytes, peak.limit_bytes, limit**2)
    lowest_bytes = lowest_peak(items, lifetimes.rest_bytes)
    over = not allocation.fits
    if over:  # As low as it gets: what the rewritten pair peaks at, decides.
        _, found = within_peak(items, errors, lifetimes.rest_bytes, allocation.peak_bytes, limit**2)
    if over and not found.fits:
        raise BudgetError(
            f"budget of {peak.limit_bytes} bytes: the lowest predicted peak found is {lowest_bytes} bytes; state a "
            "larger budget, or make the batch smaller",
            peak_bytes=allocation.peak_bytes,
        )
    if not found.fits:
        lowest = found.lowest**0.5
        raise AccuracyError(
            f"max_error={limit:g}: the lowest predicted error of the gradient found within a peak of "
            f"{peak.limit_bytes} bytes is {lowest:.3g}; state a larger limit or a larger budget",
            rel_error=lowest,
        )
    return found, lowest_bytes


def _decision(decision: Decision, candidate: Candidate, limit: float) -> Decision:
    if candidate.encoding is not None:
        stored = decision_of(decision.tensor, candidate.encoding, decision.reason)
        return replace(stored, predicted_error=candidate.rel_error)
    if decision.codec == KEEP:
        return decision
    return decision_of(decision.tensor, None, f"kept under max_error={limit:g}")
