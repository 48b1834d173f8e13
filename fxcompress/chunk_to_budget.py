"""The number of chunks of tokens that logits are computed in, as a budget wants it.

More chunks lower the peak and take time, and so do recomputing and encoding: the number whose plan takes the least
modelled time among those that fit is taken. Each is judged on its joint graph, where cuts are ranked without extracting
one (`rank_cuts`); only the best are extracted and rewritten.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import fx

from fxcompress import compat, pipeline
from fxcompress.cut_to_budget import Rewriter, cut_to_budget
from fxcompress.errors import BudgetError
from fxcompress.options import Options
from fxcompress.passes.align_names import align_names
from fxcompress.passes.chunk_loss import (
    Chunked,
    Sought,
    budget_counts,
    chunk_loss,
    chunk_sought,
    cut_chunked,
    decides_alone,
    seek_logits,
)
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.cut_within import MOST_NODES
from fxcompress.pipeline import Result
from fxcompress.plain_cut import PlainStep, plain_step
from fxcompress.plan import LossDecision, Plan
from fxcompress.rank_cuts import NOTEWORTHY, Ranking, rank_cuts
from fxcompress.replayed_peak import can_be_replayed, replayed_peaks

NUMBERS_TRIED = 2
"""By time; what then does not fit as rewritten graphs is tried with the number that has the lowest peak."""


@dataclass(frozen=True, slots=True)
class Made:
    """A rewritten pair, with what was decided about its logits and PyTorch's own step where that was looked at."""

    result: Result
    loss: LossDecision
    plain: PlainStep | None


@dataclass(frozen=True, slots=True)
class _Judged:
    """One number of chunks with its ranked cuts."""

    loss: Chunked
    cutter: compat.Cutter
    ranking: Ranking

    def key(self) -> tuple[bool, float, int]:
        """What fits before what does not; then by seconds, or by the lowest peak; then the fewest chunks."""
        cuts = self.ranking.cuts
        assert cuts is not None
        best = cuts.ranked[0]
        # Each joint graph has a cut of PyTorch's own, from which `recompute_s` counts.
        seconds = self.loss.decision.extra_s + cuts.plain_recompute_s + best.recompute_s + best.code_s
        return not best.fits, seconds if best.fits else best.lowest_peak_bytes, self.loss.decision.chunks

    def lowest_peak_bytes(self) -> int:
        """Of any of its cuts."""
        assert self.ranking.cuts is not None
        return min(cut.lowest_peak_bytes for cut in self.ranking.cuts.ranked)


def chunk_to_budget(
    gm: fx.GraphModule,
    cut: compat.Cutter,
    rewriting: Rewriter,
    options: Options,
    plan: Plan | None,
    num_fwd_outputs: int,
) -> Made:
    """Chunk the logits of a joint graph, cut it and rewrite the pair.

    Args:
        gm: the joint graph.
        cut: cuts it.
        rewriting: rewrites a pair.
        options: the options given; those that a plan was made with replace them where they decide about graphs.
        plan: a plan to replay, which states the number of chunks.
        num_fwd_outputs: how many outputs of the joint graph are the user's.

    Raises:
        BudgetError: nothing tried leads to a pair that keeps the budget.
        PlanError: a plan is replayed that was made for another graph.
    """
    decided = pipeline.decided(plan, options)
    sought = seek_logits(gm) if plan is None and not decides_alone(options) else None
    if sought is not None and budget_counts(sought):
        before = copy_graph(gm)  # PyTorch's partitioner edits the graph that it cuts
        plain = _measured(plain_step(cut, options.inner, num_fwd_outputs), cut, decided, num_fwd_outputs)
        judge = _Judge(before, sought, cut, decided, num_fwd_outputs, plain.peak.peak_bytes)
        judging = _judge_large if len(before.graph.nodes) > MOST_NODES else _judge
        judged = judging(judge, budget_counts(sought))
        return _first_that_fits(sorted(judged, key=_Judged.key), rewriting, plain)
    loss = (
        chunk_loss(gm, num_fwd_outputs, options, plan)
        if sought is None
        else chunk_sought(gm, sought, num_fwd_outputs, options, 0)
    )
    found = plain_step(cut, options.inner, num_fwd_outputs) if loss.decision.shape else None
    if plan is None and isinstance(decided.budget, str):
        step = found or plain_step(cut, options.inner, num_fwd_outputs)
        found = _measured(step, cut, decided, num_fwd_outputs)
    ranking = Ranking(decided, num_fwd_outputs + loss.extra, found.peak.peak_bytes if found else None)
    return Made(cut_to_budget(_cutter(loss, cut), _informed(rewriting, loss, found), ranking), loss.decision, found)


def _measured(step: PlainStep, cut: compat.Cutter, options: Options, num_fwd_outputs: int) -> PlainStep:
    """A step under PyTorch's own cut with the peak that it has, if a share of that is asked for and it can be told."""
    if not isinstance(options.budget, str) or not can_be_replayed(options, cut.joint):
        return step
    with compat.choosing_saved_values(lambda joint, info, torch_choice: torch_choice(rebuild_more=False)):
        # An extraction leaves marks on the graph that later choices would trip over.
        fw, bw = cut.of(copy_graph(cut.joint), num_fwd_outputs, lambda pair: None)(rebuild_more=False)
    align_names(fw, bw, num_fwd_outputs)
    found = replayed_peaks(fw, bw, num_fwd_outputs, options, plain=True)
    return step if found is None else replace(step, peak=replace(step.peak, peak_bytes=found.peak_bytes))


def _cutter(loss: Chunked, cut: compat.Cutter) -> compat.Cutter:
    return cut_chunked(loss, cut) if loss.extra else cut


def _informed(rewriting: Rewriter, loss: Chunked, plain: PlainStep | None) -> Rewriter:
    """`rewriting`, told the peak without us where the pair, whose logits are chunked, does not have it."""
    return functools.partial(rewriting, peak_before=plain.peak) if loss.extra and plain else rewriting


@dataclass(slots=True)
class _Judge:
    """Ranks the cuts of a joint graph whose logits are in chunks. `sought`: they, until they are edited."""

    gm: fx.GraphModule
    sought: Sought | None
    cut: compat.Cutter
    options: Options
    num_fwd_outputs: int
    plain_peak_bytes: int

    def at(self, number: int, below_s: float = float("inf")) -> _Judged | None:
        """None if chunks cannot be written, or take `below_s` by themselves."""
        sought = self.sought or seek_logits(self.gm)
        self.sought = None if number else sought
        loss = chunk_sought(self.gm, sought, self.num_fwd_outputs, self.options, number)
        if loss.decision.chunks != number or loss.decision.extra_s >= below_s:
            return None
        cutter = _cutter(loss, self.cut)
        ranking = rank_cuts(cutter, self.options, self.num_fwd_outputs + loss.extra, self.plain_peak_bytes)
        return _Judged(loss, cutter, ranking)


def _judge(judge: _Judge, numbers: tuple[int, ...]) -> Iterator[_Judged]:
    """Numbers of chunks with their cuts, from few to many, as long as more may take less time."""
    least_s = float("inf")
    for number in numbers:
        judged = judge.at(number, least_s)
        if judged is None:
            return
        yield judged
        does_not_fit, seconds, _ = judged.key()
        if not does_not_fit and seconds > least_s:
            return
        least_s = least_s if does_not_fit else seconds


def _judge_large(judge: _Judge, numbers: tuple[int, ...]) -> Iterator[_Judged]:
    """The same for a graph whose cuts take seconds to rank.

    More chunks are not tried where the best cut fits and what it lacks memory for is not the logits. Whole logits come
    last: they save no more than what the chunks take.
    """
    whole, *chunked = numbers
    for judged in _judge(judge, tuple(chunked)):
        yield judged
        cuts = judged.ranking.cuts
        assert cuts is not None
        if cuts.ranked[0].fits and not _lacks_memory_for_logits(judged, judge.gm):
            if judged.loss.decision.extra_s < NOTEWORTHY * cuts.step_s:
                return
            break
    yield from _judge(judge, (whole,))


def _lacks_memory_for_logits(judged: _Judged, whole: fx.GraphModule) -> bool:
    """Whether a step that binds the best cut stands among those that chunks brought, scaling by a tangent left out."""
    asked, cuts = judged.cutter.question(), judged.ranking.cuts
    assert asked is not None and cuts is not None
    backward = compat.recompute_rules(asked.joint, asked.info).backward
    before = {node.name for node in whole.graph.nodes}
    place = {node.name: i for i, node in enumerate(asked.joint.nodes)}
    new = [place[node.name] for node in asked.joint.nodes if node.name not in before and node not in backward]
    return any(min(new) <= place[name] <= max(new) for name in cuts.bound_at)


def _first_that_fits(ranked: list[_Judged], rewriting: Rewriter, plain: PlainStep) -> Made:
    failures = []
    lowest = min(ranked, key=_Judged.lowest_peak_bytes)
    best = ranked[:NUMBERS_TRIED]
    for judged in best if lowest in best else [*best, lowest]:
        try:
            result = cut_to_budget(judged.cutter, _informed(rewriting, judged.loss, plain), judged.ranking)
            return Made(result, judged.loss.decision, plain)
        except BudgetError as error:
            failures.append(error)
    raise min(failures, key=lambda error: error.peak_bytes)
