"""Which ranked cut to finish next, and for what peak, given what became of those before.

`rank_cuts` ranks the cuts of a joint graph; a `Ranking` answers what to save for the cut that is taken, and is told
what that came to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from fxcompress import compat
from fxcompress.errors import BudgetError, PlanError
from fxcompress.limits import budget_bytes
from fxcompress.options import Options
from fxcompress.passes.cut_within import Cuts, cut_within
from fxcompress.passes.estimate_cut import OWN, REBUILT, Cut
from fxcompress.pipeline import Result
from fxcompress.plain_cut import machine_of
from fxcompress.plan import Decision
from fxcompress.replayed_peak import Peaks

CUTS_TRIED = 3
"""Further cuts are rarely better where these failed, and each costs an extraction."""
AIMS_TRIED = 3
"""Of one cut, for the same reason."""
NOTEWORTHY = 0.001
"""Of the step's modelled time: a cut that may save less is not worth an extraction."""
ALIKE = 0.001
"""Of the lowest peak: cuts that differ by no more, and by no noteworthy time, are not both finished."""
NEAR = 0.1
"""Cuts are ranked once more only if the best of them missed the limit by no more than this share of it."""


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
    wrong_bytes: int = 0
    """How much too low the model's peak was for a cut that keeps the limit since its aim was lowered by that."""
    last: list[int] | None = None
    """Cuts still to be finished as low as they get, whatever that costs, after all others failed."""
    known: dict[tuple[str, tuple[Decision, ...]], Peaks | None] = field(default_factory=dict)
    """Peaks that were replayed: several cuts, or aims, may lead to the same pair."""

    @property
    def aim_bytes(self) -> int:
        """The predicted peak to finish the cut taken for."""
        return self.aims[-1] if self.aims else max(self.limit_bytes - self.lowered_bytes - self.wrong_bytes, 0)

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
            lower = self._lower(excess, predicted_bytes)
            if not self.aims or (closer and len(self.aims) + 1 < AIMS_TRIED and lower < self.aim_bytes):
                self.aims.append(lower)
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

    def _lower(self, excess: int, predicted_bytes: int | None) -> int:
        """The aim that follows one which missed; 0 where that was out of reach, as estimated."""
        assert self.cuts is not None
        reached = self.aim_bytes if predicted_bytes is None else predicted_bytes
        if reached > self.aim_bytes and not self.cuts.ranked[self.taken].fits:
            return 0
        return max(min(self.aim_bytes, reached) - excess, 0)

    def kept(self, result: Result, predicted_bytes: int) -> None:
        """Take the next cut; first the same one again for a higher aim, if it was finished as low as it gets.

        Args:
            result: what keeps the limit.
            predicted_bytes: the model's peak of it.
        """
        wrong = max(result.plan.peak_after.peak_bytes - predicted_bytes, 0)
        aim = self.limit_bytes - wrong
        if self.taken in self.failed:
            aim = min(aim, (predicted_bytes + self.failed[self.taken]) // 2)
        if self.last is not None and self.aims == [0] and predicted_bytes < aim:
            self.aims.append(aim)
            return
        if self.aims and self.last is None:
            self.wrong_bytes = wrong
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

        cuts = cut_within(gm, info, torch_choice, self.options, limit_of, self.num_fwd_outputs, machine)
        self.cuts = replace(cuts, ranked=distinct(cuts.ranked, NOTEWORTHY * cuts.step_s))


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


def distinct(ranked: Sequence[Cut], noteworthy_s: float) -> tuple[Cut, ...]:
    """The cuts without those that the model tells from no better one: where that missed a limit, they would, too.

    PyTorch's own stay. `noteworthy_s`: modelled seconds that tell two cuts apart.
    """
    kept: list[Cut] = []
    for cut in ranked:
        if cut.name in (OWN, REBUILT) or not any(_is_alike(cut, other, noteworthy_s) for other in kept):
            kept.append(cut)
    return tuple(kept)


def _is_alike(cut: Cut, other: Cut, noteworthy_s: float) -> bool:
    far = abs(cut.lowest_peak_bytes - other.lowest_peak_bytes)
    return far <= ALIKE * other.lowest_peak_bytes and abs(cut.seconds - other.seconds) <= noteworthy_s


def overhead_s(result: Result) -> float:
    """Modelled seconds of recomputing and coding; plans that are replayed cost nothing to compare."""
    return sum(fit.recompute_s + fit.code_s for fit in result.plan.fits)
