"""Which cut of a joint graph to calibrate next, where a budget and a limit on the error are stated together.

How exact a plan is, is known for the cuts that were calibrated; which cut is best depends on the widths that the limit
allows. So the first is the one for the widest codes that keep the budget. A cut for narrower ones is worth a step of
its own if, at these widths, it costs less than the best plan known, and if what is known says that the limit can be
kept at them: that step's gradient is then about as exact as those that follow.
"""

from dataclasses import dataclass, replace

from torch import fx

from fxcompress import costs, pipeline
from fxcompress.error_table import ErrorTable
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes.choose import SHARED
from fxcompress.plan import KEEP
from fxcompress.rewrite_joint import Request, cut_settings, rewritten_pair

WORTH = 0.95
"""A cut is calibrated if coding and recomputing may take no more than this share of the best known."""


@dataclass(frozen=True, slots=True)
class NextCut:
    """A rewritten pair and the widths that its cut was made for; `is_new`: its errors are not known yet."""

    result: pipeline.Result
    bits: int
    operand_bits: int
    is_new: bool


def next_cut(gm: fx.GraphModule, request: Request, known: ErrorTable) -> NextCut:
    """The pair to run next: the next cut to calibrate, or the best plan known if there is none.

    Args:
        gm: the joint graph.
        request: what to do with it; its own `errors` are not read.
        known: errors of cuts calibrated so far, also of other graphs.

    Raises:
        UnsupportedGraphError: the graph cannot be analysed.
        BudgetError, AccuracyError: no plan keeps the budget; none of the best known cut keeps the limit.
    """
    if not known.graphs:
        return _first(gm, request)
    try:
        best = rewritten_pair(gm, replace(request, errors=known))
    except PlanError:  # nothing is known of this graph
        return _first(gm, request)
    errors = known.find(best.plan.fingerprint)
    assert errors is not None and request.options.max_error is not None
    for setting in cut_settings(request.options):
        widths = setting.bits, setting.operand_bits
        narrower = widths < (errors.bits, errors.operand_bits)
        if not narrower or errors.least(*widths) > request.options.max_error:
            continue
        try:
            result = rewritten_pair(gm, replace(request, options=setting, errors=None))
        except BudgetError:
            continue
        fused = request.options.inner == "inductor"
        if known.find(result.plan.fingerprint) is None and _seconds(result, fused) < WORTH * _seconds(best, fused):
            return NextCut(result, *widths, is_new=True)
    return NextCut(best, errors.bits, errors.operand_bits, is_new=False)


def _first(gm: fx.GraphModule, request: Request) -> NextCut:
    failures: list[BudgetError] = []
    for setting in cut_settings(request.options):
        try:
            result = rewritten_pair(gm, replace(request, options=setting, errors=None))
            return NextCut(result, setting.bits, setting.operand_bits, is_new=True)
        except BudgetError as error:
            failures.append(error)
    raise min(failures, key=lambda error: error.peak_bytes)


def _seconds(result: pipeline.Result, fused: bool) -> float:
    """Modelled seconds of recomputing, coding and chunks, with no price on errors: a limit is stated for them."""
    plan = result.plan
    seconds = plan.loss.extra_s + sum(fit.recompute_s for fit in plan.fits)
    if not result.encodings:
        return seconds
    rates = costs.rates_of(result.encodings[0].source.meta["val"].device, fused=fused)
    for decision in plan.decisions:
        if decision.codec not in (KEEP, SHARED):
            narrow = decision.codec == "affine" and int(dict(decision.params)["bits"]) < 8
            seconds += costs.code_s(decision.tensor.storage_nbytes, decision.nbytes, narrow, rates)
    return seconds
