"""Which of the ranked cuts are finished: no fewer than the cheapest plan needs, and no more than three."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from fxcompress import cut_to_budget as subject
from fxcompress.cut_to_budget import cut_to_budget
from fxcompress.errors import BudgetError
from fxcompress.facts import Peak
from fxcompress.options import Options
from fxcompress.passes.cut_within import Cuts
from fxcompress.passes.estimate_cut import OWN, REBUILT, Cut
from fxcompress.plan import Fit
from fxcompress.rank_cuts import Ranking, distinct
from fxcompress.replayed_peak import Peaks

LIMIT = 1000


def ranked(*seconds: float) -> Cuts:
    """Cuts that are estimated to cost so much, the last of them PyTorch's own."""
    names = [*(f"cut {i}" for i in range(len(seconds) - 1)), OWN]
    cuts = tuple(Cut(name, (), 500, cost, 0.0, True) for name, cost in zip(names, seconds, strict=True))
    return Cuts(cuts, 0, 2000, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Plan:
    fits: tuple[Fit, ...]
    peak_after: Peak
    fingerprint: str
    decisions: tuple[()] = ()


@dataclass(frozen=True)
class Result:
    plan: Plan
    fw: None = None
    bw: None = None


def finished(seconds: float, peak_bytes: int = 0) -> Any:
    """A result whose plan costs and peaks so much."""
    fit = Fit(LIMIT, 2000, peak_bytes, "cut", seconds, 0.0, 0.0)
    return Result(Plan((fit,), Peak(peak_bytes, "", peak_bytes, 0, ()), str(seconds)))


class Finishing:
    """Rewrites the cuts in turn: into plans of these costs, or errors at these peaks."""

    def __init__(self, *outcomes: float | int, predicted_bytes: int = 900) -> None:
        self.outcomes, self.cuts, self.targets = list(outcomes), list[str](), list[int]()
        self.predicted_bytes = predicted_bytes

    def __call__(self, pair: Any, plain_saved_bytes: int | None, budget: Any) -> Any:
        self.cuts.append(budget.cut)
        self.targets.append(budget.target_bytes)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, int):
            raise BudgetError("too high", peak_bytes=outcome)
        return finished(outcome, min(self.predicted_bytes, budget.target_bytes))


def cut_nothing(*, rebuild_more: bool) -> Any:
    """Stands for PyTorch's extraction."""
    return None


def chooser_of(cuts: Cuts) -> Ranking:
    return Ranking(Options(budget=LIMIT, inner="aot_eager"), 1, None, limit_bytes=LIMIT, cuts=cuts)


def test_a_plan_as_cheap_as_estimated_is_taken_at_once() -> None:
    finishing = Finishing(1.0)
    assert cut_to_budget(cut_nothing, finishing, chooser_of(ranked(1.0, 2.0))).plan.fits[0].recompute_s == 1.0
    assert finishing.cuts == ["cut 0"]


@pytest.mark.parametrize(
    "outcomes, tried, best", [((5.0, 2.5), 2, 2.5), ((5.0, 6.0, 7.0), 3, 5.0), ((5.0, 1100, 1100, 3.0), 3, 3.0)]
)
def test_the_cheapest_finished_plan_is_kept(outcomes: tuple[float, ...], tried: int, best: float) -> None:
    """The third is estimated at 3, and finished only if what there is costs more; one that misses is tried twice."""
    finishing = Finishing(*outcomes)
    result = cut_to_budget(cut_nothing, finishing, chooser_of(ranked(1.0, 2.0, 3.0, 4.0)))
    assert result.plan.fits[0].recompute_s == best
    assert len(set(finishing.cuts)) == tried and not finishing.outcomes


@pytest.mark.parametrize("peak, again", [(1050, True), (1200, False)])
def test_what_just_missed_is_ranked_once_more_for_a_lower_limit(peak: int, again: bool) -> None:
    chooser = chooser_of(ranked(1.0))
    finishing = Finishing(peak, peak, 4.0, 4.0)

    def cut(*, rebuild_more: bool) -> Any:
        chooser.cuts = chooser.cuts or ranked(2.0)

    if not again:
        # The cut with the lowest estimate is finished as low as it gets, then between that and where it missed.
        assert cut_to_budget(cut, finishing, chooser).plan.fits[0].recompute_s == 4.0
        assert finishing.targets == [LIMIT, LIMIT - 200, 0, (LIMIT - 200) // 2]
        return
    assert cut_to_budget(cut, finishing, chooser).plan.fits[0].recompute_s == 4.0
    assert finishing.targets == [LIMIT, LIMIT - 50, LIMIT - 50]


def test_an_error_states_the_lowest_peak_that_was_reached() -> None:
    finishing = Finishing(1200, 1150, 1130, 1110)
    with pytest.raises(BudgetError) as raised:
        cut_to_budget(cut_nothing, finishing, chooser_of(ranked(1.0)))
    assert raised.value.peak_bytes == 1110 and finishing.targets[-1] == 0


def test_a_cut_that_was_not_to_fit_and_does_not_is_finished_as_low_as_it_gets() -> None:
    """Not for a lower aim, for which the same plan would be made."""
    targets: list[int] = []

    def finishing(pair: Any, plain_saved_bytes: int | None, budget: Any) -> Any:
        targets.append(budget.target_bytes)
        return finished(1.0, 1200 if budget.target_bytes else 1150)

    cuts = ranked(1.0)
    with pytest.raises(BudgetError) as raised:
        cut_to_budget(cut_nothing, finishing, chooser_of(replace(cuts, ranked=(replace(cuts.ranked[0], fits=False),))))
    assert raised.value.peak_bytes == 1150 and targets == [LIMIT, 0]


def test_at_last_pytorchs_own_cut_is_finished_as_low_as_it_gets_then_as_high_as_fits() -> None:
    finishing = Finishing(*[1500] * 7, 9.0, 8.0)
    result = cut_to_budget(cut_nothing, finishing, chooser_of(ranked(1.0, 2.0, 3.0, 4.0, 5.0)))
    assert result.plan.fits[0].recompute_s == 8.0
    assert finishing.cuts[-3:] == ["cut 0", OWN, OWN] and finishing.targets[-3:] == [0, 0, LIMIT]


def test_a_plan_whose_replayed_peak_is_too_high_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [Peaks(1300, 10), Peaks(10, 900)]
    monkeypatch.setattr(subject, "replayed_peaks", lambda *args: peaks.pop(0))
    finishing = Finishing(1.0, 2.0)
    plan = cut_to_budget(cut_nothing, finishing, chooser_of(ranked(1.0))).plan
    assert finishing.targets == [LIMIT, 900 - 300] and plan.peak_after.peak_bytes == 900


def test_what_the_model_was_wrong_by_is_known_for_the_next_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [Peaks(LIMIT + 100, 10), Peaks(LIMIT, 10), Peaks(LIMIT, 10)]
    monkeypatch.setattr(subject, "replayed_peaks", lambda *args: peaks.pop(0))
    finishing = Finishing(5.0, 5.5, 2.5, predicted_bytes=LIMIT)
    assert cut_to_budget(cut_nothing, finishing, chooser_of(ranked(1.0, 2.0, 3.0))).plan.fits[0].recompute_s == 2.5
    assert finishing.targets == [LIMIT, LIMIT - 100, LIMIT - 100]


def test_a_plan_that_only_the_model_refuses_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "replayed_peaks", lambda *args: Peaks(900, 10))
    made = [finished(1.0, 1200)]
    result = cut_to_budget(cut_nothing, lambda *args: made.pop(), chooser_of(ranked(1.0)))
    assert result.plan.peak_after.peak_bytes == 900


def test_a_pair_that_is_known_is_not_replayed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several cuts, and several aims, may lead to one pair; what is stated is the lowest of all."""
    peaks = [Peaks(1300, 10), Peaks(1200, 10)]
    monkeypatch.setattr(subject, "replayed_peaks", lambda *args: peaks.pop(0))
    with pytest.raises(BudgetError) as raised:
        cut_to_budget(cut_nothing, Finishing(1.0, 1.0, 2.0, 2.0, 1.0, 2.0), chooser_of(ranked(1.0, 2.0)))
    assert raised.value.peak_bytes == 1200 and not peaks


def test_the_lowest_peak_found_is_not_above_the_one_that_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "replayed_peaks", lambda *args: Peaks(300, 200))
    result = cut_to_budget(cut_nothing, lambda *args: finished(1.0, 700), chooser_of(ranked(1.0)))
    assert (result.plan.peak_after.peak_bytes, result.plan.fits[0].lowest_peak_bytes) == (300, 300)


def test_cuts_that_recompute_less_than_pytorchs_own_are_as_good_as_it() -> None:
    """What a finished plan is known to cost does not go below zero either."""
    finishing = Finishing(0.0)
    assert cut_to_budget(cut_nothing, finishing, chooser_of(ranked(-3.0, -3.0, -2.0))).plan.fits[0].recompute_s == 0.0
    assert finishing.cuts == ["cut 0"]


def test_of_cuts_that_the_model_cannot_tell_apart_one_is_finished() -> None:
    def cut(name: str, peak_bytes: int, seconds: float) -> Cut:
        return Cut(name, (), peak_bytes, seconds, 0.0, True)

    cuts = (
        cut("first", 10_000, 1.0),
        cut("a byte lower", 9_999, 1.0001),
        cut("lower", 9_000, 1.0001),
        cut(OWN, 10_000, 1.0),
        cut("dearer", 10_000, 1.1),
        cut(REBUILT, 10_000, 1.1),
        cut("as the dearer", 10_000, 1.1),
    )
    assert [each.name for each in distinct(cuts, 0.001)] == ["first", "lower", OWN, "dearer", REBUILT]
