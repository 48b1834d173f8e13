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
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import fx

from fxcompress import compat
from fxcompress.errors import BudgetError, PlanError
from fxcompress.facts import Peak
from fxcompress.limits import Budget, budget_bytes, kept
from fxcompress.options import Options
from fxcompress.passes.cut_within import Cuts, cut_within
from fxcompress.passes.estimate_cut import OWN, REBUILT, Cut
from fxcompress.pipeline import Result
from fxcompress.plain_cut import machine_of
from fxcompress.plan import Decision
from fxcompress.replayed_peak import Peaks, replayed_peaks

CUTS_TRIED = 3
"""Further cuts are rarely better where these failed, and each costs an extraction."""
AIMS_TRIED = 3
"""Of one cut, for the same reason."""
NOTEWORTHY = 0.001
"""Of the step's modelled time: a cut that may save less is not worth an extraction."""
NEAR = 0.1
"""Cuts are ranked once more only if the best of them missed the limit by no more than this share of it."""


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


@dataclass(slots=True)
class Ranking:
    """Answers what to save: nothing is decided at the first call, which ranks the cuts, then the cut it is told."""

    options: Options
    num_fwd_outputs: int
    plain_peak_bytes: int | None
    limit_bytes: int = 0
    cuts: Cuts | None = None
    taken: int = 0
    aims: list[int] = field(default_factory=list)
    """Predicted peaks that the cut taken was finished for, and is to be finished for next."""
    failed: dict[int, int] = field(default_factory=dict)
    """The lowest aim at which each cut missed the limit."""
    least_excess_bytes: int = 0
    """By how much the best cut missed the limit so far."""
    lowered_bytes: int = 0
    """By how much the limit was lowered for the ranking at hand."""
    last: list[int] | None = None
    """Cuts still to be finished as low as they get, whatever that costs, after all others failed."""
    known: dict[tuple[str, tuple[Decision, ...]], Peaks | None] = field(default_factory=dict)
    """Peaks that were replayed: several cuts, or aims, may lead to the same pair."""

    @property
    def aim_bytes(self) -> int:
        """The predicted peak to finish the cut taken for."""
        return self.aims[-1] if self.aims else max(self.limit_bytes - self.lowered_bytes, 0)

    def missed(self, error: BudgetError | PlanError, predicted_bytes: int | None) -> None:
        """Aim lower with the same cut, or take the next one.

        Args:
            error: what became of the cut taken.
            predicted_bytes: the model's peak of the pair, if it was finished.
        """
        if self.last is not None and self.aims == [0]:
            self.skip()
            return
        if isinstance(error, BudgetError):
            excess = error.peak_bytes - self.limit_bytes
            closer = not self.least_excess_bytes or excess < self.least_excess_bytes
            self.least_excess_bytes = min(excess, self.least_excess_bytes or excess)
            self.failed[self.taken] = self.aim_bytes
            if not self.aims or (closer and len(self.aims) + 1 < AIMS_TRIED):
                reached = self.aim_bytes if predicted_bytes is None else min(self.aim_bytes, predicted_bytes)
                self.aims.append(max(reached - excess, 0))
                return
        self.skip()
        if self.last is not None:
            return
        near = 0 < self.least_excess_bytes <= NEAR * self.limit_bytes
        if self._is_done() and near and not self.lowered_bytes:
            self.lowered_bytes, self.taken, self.cuts = self.least_excess_bytes, 0, None
            self.failed.clear()
        elif self._is_done():
            self._finish_low(self._lowest())

    def kept(self, result: Result, predicted_bytes: int) -> None:
        """Take the next cut; first the same one again for a higher aim, if it was finished as low as it gets.

        Args:
            result: what keeps the limit.
            predicted_bytes: the model's peak of it.
        """
        aim = self.limit_bytes - max(result.plan.peak_after.peak_bytes - predicted_bytes, 0)
        if self.taken in self.failed:
            aim = min(aim, (predicted_bytes + self.failed[self.taken]) // 2)
        if self.last is not None and self.aims == [0] and predicted_bytes < aim:
            self.aims.append(aim)
        else:
            self.skip()

    def skip(self) -> None:
        """Take the next cut."""
        if self.last is not None:
            self._finish_low(self.last[1:])
        else:
            self.taken, self.aims = self.taken + 1, []

    def _finish_low(self, last: list[int]) -> None:
        self.last = last
        if last:
            self.taken, self.aims = last[0], [0]

    def _lowest(self) -> list[int]:
        """Cuts that may reach the lowest peak: by the estimates, and PyTorch's own, which run without a budget."""
        assert self.cuts is not None
        ranked = self.cuts.ranked
        by_peak = sorted(range(len(ranked)), key=lambda place: ranked[place].lowest_peak_bytes)
        own = [place for place, cut in enumerate(ranked) if cut.name in (OWN, REBUILT)]
        # Where none was to fit the limit itself, each was finished as low as it gets, the lowest first.
        done = 0 if ranked[0].fits or self.lowered_bytes else self.taken
        return [place for place in dict.fromkeys((by_peak[0], *own)) if place >= done]

    def may_beat(self, result: Result | None) -> bool:
        """Whether a cut is left to try, and no finished plan costs less than it is estimated to."""
        if self.cuts is None:
            return result is None
        if self._is_done():
            return False
        cut = self.cuts.ranked[self.taken]
        least_s = NOTEWORTHY * self.cuts.step_s
        # A finished plan's overhead does not tell by how much less than PyTorch's own its cut recomputes.
        estimated_s = max(cut.recompute_s, 0.0) + cut.code_s
        return result is None or (cut.fits and estimated_s + least_s < overhead_s(result))

    def _is_done(self) -> bool:
        if self.last is not None:
            return not self.last
        most = 1 if self.lowered_bytes else CUTS_TRIED
        return self.cuts is not None and self.taken >= min(most, len(self.cuts.ranked))

    def choose(self, joint: fx.Graph, info: compat.NodeInfo, torch_choice: compat.TorchChoice) -> list[fx.Node]:
        if self.cuts is None:
            self._rank(joint, info, torch_choice)
        assert self.cuts is not None
        named = {node.name: node for node in joint.nodes}
        # Every extraction starts from a copy of the joint graph.
        return [named[node.name] for node in self.cuts.ranked[self.taken].saved]

    def _rank(self, joint: fx.Graph, info: compat.NodeInfo, torch_choice: compat.TorchChoice) -> None:
        gm = joint.owning_module
        assert gm is not None
        machine = machine_of(gm, self.options.inner, self.options)

        def limit_of(plain_peak_bytes: int) -> int:
            assert self.options.budget is not None
            self.limit_bytes = budget_bytes(self.options.budget, self.plain_peak_bytes or plain_peak_bytes)
            return max(self.limit_bytes - self.lowered_bytes, 0)

        self.cuts = cut_within(gm, info, torch_choice, self.options, limit_of, self.num_fwd_outputs, machine)


def rank_cuts(
    cut: compat.Cutter, options: Options, num_fwd_outputs: int, plain_peak_bytes: int | None = None
) -> Ranking:
    """Rank the cuts of the joint graph that `cut` holds; nothing is extracted.

    Args:
        cut: cuts the joint graph.
        options: the budget, and what may be done to keep it.
        num_fwd_outputs: how many outputs of the joint graph are the user's.
        plain_peak_bytes: what a share is of, if not PyTorch's own cut of this joint graph.
    """
    ranking = Ranking(options, num_fwd_outputs, plain_peak_bytes)
    asked = cut.question()
    if asked is not None:
        ranking.choose(asked.joint, asked.info, asked.torch_choice)
    return ranking


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


def overhead_s(result: Result) -> float:
    """Modelled seconds of recomputing and coding; plans that are replayed cost nothing to compare."""
    return sum(fit.recompute_s + fit.code_s for fit in result.plan.fits)


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
