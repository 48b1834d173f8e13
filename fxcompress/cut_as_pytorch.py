"""From a joint graph to a rewritten pair along PyTorch's own cut, which saves what is cheap to save in few bits.

The cut may rebuild pointwise operands of products. A product that is cheap to compute again (`passes.find_cheap`) is
left out of what it saves if that does not raise the rewritten pair's predicted peak: rebuilt, it stands in memory
whole, where a decode is often fused away.
"""

from dataclasses import dataclass

from torch import fx

from fxcompress import compat
from fxcompress.cut_to_budget import Cutter, Rewriter
from fxcompress.errors import PlanError
from fxcompress.options import Options
from fxcompress.passes.estimate_cut import saved_nbytes
from fxcompress.passes.find_cheap import find_cheap
from fxcompress.pipeline import Result
from fxcompress.plan import GraphPlan


@dataclass(slots=True)
class _Chooser:
    """Answers what to save: PyTorch's choice, without its cheap products if `rebuild_cheap`.

    `compared`: whether to find out what PyTorch's default choice saves.
    """

    compared: bool
    rebuild_cheap: bool = False
    plain_saved_bytes: int | None = None
    found_cheap: bool = False

    def choose(self, joint: fx.Graph, info: compat.NodeInfo, torch_choice: compat.TorchChoice) -> list[fx.Node]:
        if self.compared and self.plain_saved_bytes is None:
            self.plain_saved_bytes = saved_nbytes(torch_choice(rebuild_more=False))
        saved = torch_choice(rebuild_more=True)
        cheap = find_cheap(saved)
        self.found_cheap = bool(cheap)
        if not self.rebuild_cheap:
            return saved
        origins = [origin for found in cheap.values() for origin in found]
        return list(dict.fromkeys((*(node for node in saved if node not in cheap), *origins)))


def cut_as_pytorch(cut: Cutter, rewriting: Rewriter, options: Options, *, compared: bool) -> Result:
    """Cut and rewrite the joint graph that `cut` holds.

    Args:
        cut: cuts the joint graph.
        rewriting: rewrites what it gives.
        options: which passes to leave out.
        compared: whether the result's plan is to state what PyTorch's own cut of this graph saves.

    Raises:
        PlanError: a plan is replayed that was made for another graph.
    """
    chooser = _Chooser(compared)
    failure: PlanError | None = None
    kept: Result | None = None
    try:
        kept = _rewritten(cut, rewriting, chooser)
    except PlanError as error:  # perhaps made for the other cut
        failure = error
    if chooser.found_cheap and "find_cheap" not in options.disable_passes:
        chooser.rebuild_cheap = True
        try:
            rebuilt = _rewritten(cut, rewriting, chooser)
        except PlanError as error:
            failure = failure or error
        else:
            if kept is None or _is_better(rebuilt.plan, kept.plan):
                return rebuilt
    if kept is None:
        assert failure is not None
        raise failure
    return kept


def _rewritten(cut: Cutter, rewriting: Rewriter, chooser: _Chooser) -> Result:
    with compat.choosing_saved_values(chooser.choose):
        pair = cut(rebuild_more=True)
    return rewriting(pair, chooser.plain_saved_bytes, None)


def _is_better(rebuilt: GraphPlan, kept: GraphPlan) -> bool:
    """A product that the caller gets as an output is not saved for it, and rebuilding it frees nothing."""
    lower = rebuilt.peak_after.peak_bytes <= kept.peak_after.peak_bytes
    return lower and rebuilt.saved_bytes_after < kept.saved_bytes_after
