"""Everything that a report shows of a model: plans, timelines, graphs, and other settings beside the one asked for.

`survey(module_factory, …)` runs the model on fake tensors as `explain` does, once under PyTorch's own cut and
once per setting. All of it is predicted: bytes and seconds are models, and the error is one of the stored values, not
of the gradient.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxcompress import costs, ledger
from fxcompress.errors import BudgetError, FxcompressError, OptionError
from fxcompress.facts import CALLER_HELD
from fxcompress.footprint import GraphNeed, need_of, stacked_peak
from fxcompress.inputs import InputSpec
from fxcompress.list_graph import list_graph
from fxcompress.options import GivenOptions, Options, as_options
from fxcompress.passes.choose import SHARED
from fxcompress.passes.fit_budget import VARIANCE
from fxcompress.passes.record_memory import record_memory
from fxcompress.plain_cut import machine_of
from fxcompress.plan import KEEP, Decision, GraphPlan
from fxcompress.report.data import GraphView, Kind, Line, Point, Survey
from fxcompress.report.fold import counted
from fxcompress.report.text import human_bytes, representation
from fxcompress.timeline import Timeline
from fxcompress.trace import Case, on_fake_tensors
from fxcompress.watch import interpreting, partitioner_for, run_once

WIDTHS = ((8, 8), (4, 8), (4, 4), (2, 4), (2, 2))
"""Settings of `bits` and `operand_bits` that a survey tries."""
BUDGETS = ("75%", "50%", "35%")
Setting = tuple[str, Kind, Options | None]


@dataclass(frozen=True, slots=True)
class _Step:
    """One traced step: its graphs in order, each with what is kept of it."""

    plans: tuple[GraphPlan, ...]
    needs: tuple[GraphNeed, ...]
    timelines: tuple[Timeline, ...]
    listings: tuple[tuple[tuple[Line, ...], tuple[Line, ...]], ...]
    step_s: float
    repeated_s: float
    rates: costs.Rates


def survey(
    module_factory: Callable[[], object],
    inputs: Sequence[InputSpec] = (),
    options: GivenOptions = None,
    *,
    target: str = "",
    sweep: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Survey:
    """Look at a model under PyTorch's own cut, under the options, and under others for comparison.

    Args:
        module_factory, inputs, options: as for `explain`.
        target: what the model is called.
        sweep: whether to try the other settings, about eight more traces.
        progress: told about every trace.

    Raises:
        FxcompressError: the model saves nothing for backward.
        BudgetError: the options' own budget cannot be kept.
    """
    given = replace(as_options(options), save_plan=None)

    def look(case: Case) -> Survey:
        progress("PyTorch's own cut")
        plain = _trace(case, None, given.inner)
        progress("the options given")
        ours = _trace(case, given, given.inner)
        points = [_point("PyTorch's own cut", "plain", plain, plain), _point("as given", "given", ours, plain)]
        for label, kind, setting in _settings(given) if sweep else ():
            progress(label)
            points.append(_try(case, label, kind, setting, plain))
        views = [
            GraphView(plan, before, after, *listing)
            for plan, before, after, listing in zip(
                ours.plans, plain.timelines, ours.timelines, ours.listings, strict=True
            )
        ]
        return Survey(target, ledger.make_plan(ours.plans, given), tuple(views), (points[0], *_merged(points[1:])))

    return on_fake_tensors(module_factory, inputs, look)


def _trace(case: Case, options: Options | None, inner: str) -> _Step:
    needs: list[GraphNeed] = []
    timelines: list[Timeline] = []
    listings: list[tuple[tuple[Line, ...], tuple[Line, ...]]] = []
    seconds: list[tuple[float, float]] = []
    rates: list[costs.Rates] = []
    known = len(ledger.reports())

    def seen(fw: fx.GraphModule, bw: fx.GraphModule, count: int) -> None:
        needs.append(need_of(fw, bw, count, machine_of(fw, inner, options)))
        timelines.append(record_memory(fw, bw, count, machine_of(fw, inner, options)))
        plans = ledger.reports()[known:]
        notes = _notes(plans[-1].decisions) if plans else {}
        listings.append((list_graph(fw, notes), list_graph(bw, {})))
        fused = inner == "inductor"
        seconds.append((costs.step_s(fw, bw, fused=fused), costs.repeated_s(fw, bw, fused=fused)))
        rates.append(costs.rates_of(costs.device_of(fw, bw), fused=fused))

    unchanged = len(ledger.unchanged())
    run_once(*case, interpreting(partitioner_for(options, inner), inner, seen))
    if reasons := ledger.unchanged()[unchanged:]:
        raise FxcompressError(f"a graph is compiled unchanged, and what it needs is not known: {reasons[0]}")
    if not needs:
        raise FxcompressError("no graph saves anything for backward: the model ran without gradients")
    step_s, repeated_s = (sum(column) for column in zip(*seconds, strict=True))
    plans = tuple(ledger.reports()[known:])
    return _Step(plans, tuple(needs), tuple(timelines), tuple(listings), step_s, repeated_s, rates[0])


def _try(case: Case, label: str, kind: Kind, options: Options, plain: _Step) -> Point:
    try:
        return _point(label, kind, _trace(case, options, options.inner), plain)
    except Exception as error:
        cause = getattr(error, "inner_exception", error)  # torch.compile wraps what a backend raises
        if not isinstance(cause, BudgetError):
            raise
        return Point(label, kind, failure=f"no plan found; the best tried peaks at {human_bytes(cause.peak_bytes)}")


def _point(label: str, kind: Kind, step: _Step, plain: _Step) -> Point:
    return Point(
        label,
        kind,
        peak_bytes=_peak_bytes(step.needs),
        saved_bytes=sum(need.saved_bytes for need in step.needs),
        extra_s=step.repeated_s - plain.repeated_s + _code_s(step.plans, step.rates) + _chunks_s(step.plans),
        step_s=plain.step_s,
        stored_error=_stored_error(step.plans),
    )


def _merged(points: Sequence[Point]) -> tuple[Point, ...]:
    """Settings that come to the same numbers as one point, under the labels of all."""
    groups: dict[Point, list[Point]] = {}
    for point in points:
        groups.setdefault(point if point.failure else replace(point, label="", kind="plain"), []).append(point)
    return tuple(replace(group[0], label=" = ".join(point.label for point in group)) for group in groups.values())


def _peak_bytes(needs: Sequence[GraphNeed]) -> int:
    """Of one graph as its plan and its timeline state it; of several, each on top of what the earlier ones leave."""
    if len(needs) == 1:
        return max(needs[0].forward_peak_bytes, needs[0].backward_peak_bytes)
    return stacked_peak(needs)


def _settings(given: Options) -> Iterator[tuple[str, Kind, Options]]:
    """Settings worth comparing with the options given, those equal to them left out."""
    if given.plan is not None:
        return
    free: dict[str, object] = {"budget": None, "max_error": None, "calibration": None}
    candidates: list[tuple[str, Kind, dict[str, object]]] = [("exact", "width", {**free, "lossy": False, "rules": ()})]
    candidates += [
        (f"{bits}/{operand} bits", "width", {**free, "bits": bits, "operand_bits": operand}) for bits, operand in WIDTHS
    ]
    candidates += [(f"budget {budget}", "budget", {**free, "budget": budget}) for budget in BUDGETS]
    for label, kind, changes in candidates:
        try:
            setting = replace(given, **changes)  # type: ignore[arg-type]
        except OptionError:  # another option given rules this one out
            continue
        if setting != given:
            yield label, kind, setting


def _encoded(plans: Sequence[GraphPlan]) -> Iterator[tuple[Decision, int]]:
    """What is encoded, with the bytes it had."""
    for plan in plans:
        for decision, before, _ in counted(plan.decisions):
            if decision.codec not in (KEEP, SHARED):
                yield decision, before


def _chunks_s(plans: Sequence[GraphPlan]) -> float:
    return sum(plan.loss.extra_s for plan in plans)


def _code_s(plans: Sequence[GraphPlan], rates: costs.Rates) -> float:
    return sum(
        costs.code_s(before, decision.nbytes, dict(decision.params).get("rounding") == "stochastic", rates)
        for decision, before in _encoded(plans)
    )


def _stored_error(plans: Sequence[GraphPlan]) -> float:
    total = sum(plan.saved_bytes_before for plan in plans)
    variance = sum(
        before * VARIANCE.get(int(dict(decision.params).get("bits", 8)), 0.0)
        for decision, before in _encoded(plans)
        if decision.codec != "valueset"
    )
    return math.sqrt(variance / total) if total else 0.0


def _notes(decisions: Sequence[Decision]) -> dict[str, str]:
    notes = {}
    for decision, before, after in counted(decisions):
        if decision.tensor.refusal in CALLER_HELD:
            notes[decision.tensor.name] = "read by the backward, held by the caller anyway"
        elif decision.codec == KEEP:
            notes[decision.tensor.name] = f"saved as it is: {decision.reason}"
        elif decision.codec != SHARED:
            sizes = f"{human_bytes(before)} → {human_bytes(after)}"
            notes[decision.tensor.name] = f"saved as {representation(decision)}: {sizes}; {decision.reason}"
    return notes
