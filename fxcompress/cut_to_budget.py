"""From a joint graph and a budget to a rewritten pair whose predicted peak keeps it.

The cuts are ranked on the joint graph (`passes.cut_within`); the best is extracted by PyTorch and rewritten, and the
pair is lowered and its allocations replayed (`replayed_peak`). That peak must fit; where it cannot be told, the memory
model's. Where it does not (exact needs, the working memory of codecs), the same cut is tried with aims lower by what
was missed, then the next cuts, then those ranked for a limit lower by what the best of them missed. Finishing may also
make the plan dearer than estimated: where the next cut is estimated to cost less than that, it is finished as well, and
the cheapest finished plan is taken. Where all cuts that should fit miss, the one with the lowest estimated peak and
PyTorch's own two are finished as low as they get, and then, where that leaves room, as high as the limit allows: the
lowest peak reached is what a `BudgetError` states.
"""

import sys
from dataclasses import replace
from typing import Protocol

from fxcompress import compat
from fxcompress.errors import BudgetError, PlanError
from fxcompress.facts import Peak
from fxcompress.limits import Budget, kept
from fxcompress.passes.estimate_cut import Cut
from fxcompress.pipeline import Result
from fxcompress.rank_cuts import Ranking, overhead_s
from fxcompress.replayed_peak import replayed_peaks


class Cutter(Protocol):
    """Cuts the joint graph at hand, saving what PyTorch, or `compat.choosing_saved_values`, says."""

    def __call__(self, *, rebuild_more: bool) -> compat.Partition: ...


class Rewriter(Protocol):
    """Rewrites a pair under a budget. `peak_before`: the peak under PyTorch's own cut, if that was predicted."""

    def __call__(
        self,
        pair: compat.Partition,
        plain_saved_bytes: int | None,
        budget: Budget | None,
        /,
        *,
        peak_before: Peak | None = None,
    ) -> Result: ...


def cut_to_budget(cut: Cutter, rewriting: Rewriter, chooser: Ranking) -> Result:
    """Cut and rewrite the joint graph that `cut` holds.

    Args:
        cut: cuts the joint graph.
        rewriting: rewrites what it gives.
        chooser: its cuts as `rank_cuts` gives them.

    Raises:
        BudgetError: no cut tried leads to a pair that keeps the budget.
        PlanError: a plan is replayed that was made for another graph.
    """
    failures: list[BudgetError | PlanError] = []
    best: Result | None = None
    while chooser.may_beat(best):
        with compat.choosing_saved_values(chooser.choose):
            pair = cut(rebuild_more=True)
        if chooser.cuts is None:  # nothing depends on a tangent, and PyTorch did not ask
            return rewriting(pair, None, None)
        made: Result | None = None
        try:
            made = _finished(pair, rewriting, chooser)
            result = _kept(_replayed(made, chooser), chooser)
        except (BudgetError, PlanError) as error:
            failures.append(error)
            chooser.missed(error, made.plan.peak_after.peak_bytes if made else None)
        else:
            best = result if best is None or overhead_s(result) < overhead_s(best) else best
            chooser.kept(result, made.plan.peak_after.peak_bytes)
    if best is None:
        raise min(failures, key=_height)
    return best


def _height(error: BudgetError | PlanError) -> float:
    """Budget errors by their peak, before those of a plan that fits no cut."""
    return error.peak_bytes if isinstance(error, BudgetError) else float("inf")


def _finished(pair: compat.Partition, rewriting: Rewriter, chooser: Ranking) -> Result:
    """The pair rewritten, whether or not it keeps the limit; a replayed plan has its own, of a shared budget."""
    assert chooser.cuts is not None
    budget = _budget(chooser)
    made = rewriting(pair, chooser.cuts.plain_saved_bytes, replace(budget, limit_bytes=sys.maxsize))
    fits = tuple(
        replace(fit, limit_bytes=budget.limit_bytes) if fit.limit_bytes == sys.maxsize else fit
        for fit in made.plan.fits
    )
    return replace(made, plan=replace(made.plan, fits=fits))


def _replayed(result: Result, chooser: Ranking) -> Result:
    """The result with the peak that it will have, where that can be told."""
    if not result.plan.fits:
        return result
    pair = result.plan.fingerprint, result.plan.decisions
    if pair not in chooser.known:
        chooser.known[pair] = replayed_peaks(result.fw, result.bw, chooser.num_fwd_outputs, chooser.options)
    found = chooser.known[pair]
    if found is None:
        return result
    peak = replace(
        result.plan.peak_after,
        peak_bytes=found.peak_bytes,
        forward_peak_bytes=found.forward_bytes,
        backward_peak_bytes=found.backward_bytes,
    )
    return replace(result, plan=replace(result.plan, peak_after=peak))


def _kept(result: Result, chooser: Ranking) -> Result:
    """The result, whose lowest peak found is not above its own; raises `BudgetError` where that is above the limit."""
    fits = kept(result.plan.fits, result.plan.peak_after, chooser.options)
    return replace(result, plan=replace(result.plan, fits=fits))


def _budget(chooser: Ranking) -> Budget:
    assert chooser.cuts is not None
    cut: Cut = chooser.cuts.ranked[chooser.taken]
    lowest = min(other.lowest_peak_bytes for other in chooser.cuts.ranked)
    return Budget(
        limit_bytes=chooser.limit_bytes,
        target_bytes=chooser.aim_bytes,
        plain_peak_bytes=chooser.plain_peak_bytes or chooser.cuts.plain_peak_bytes,
        lowest_peak_bytes=lowest,
        cut=cut.name,
        recompute_s=max(cut.recompute_s, 0.0),
        step_s=chooser.cuts.step_s,
        error_s_per_byte=chooser.cuts.error_s_per_byte,
    )
