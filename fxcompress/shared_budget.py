"""One budget for a model that is compiled as several graphs: graph breaks, blocks compiled one by one, DDP's buckets.

A backend sees one graph at a time and cannot know what later ones will save. Here the whole step is traced first:
under PyTorch's own cuts, which says what each graph saves, and then under one budget per graph, `working + share ·
saved`: its plain working memory, and a share of what it saves, the same for all. A graph that cannot keep its own takes
the lowest it can. Graphs stand on what the earlier ones leave, so the peak is simulated for the whole step
(`footprint.stacked_peak`), and the largest share found that keeps the budget is taken. The plan that this makes is
replayed graph by graph (option `plan`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fxcompress import compat
from fxcompress.errors import BudgetError
from fxcompress.footprint import GraphNeed, need_of, stacked_peak
from fxcompress.limits import budget_bytes
from fxcompress.options import Options
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.plain_cut import machine_of
from fxcompress.watch import Partitioner, interpreting, partitioner_for, run_once

log = logging.getLogger(__name__)
Case = tuple[Any, tuple[Any, ...], dict[str, Any]]
TRACES = 5
"""Shares tried; each traces the model once."""
NEAR = 0.02
"""A peak so little below the budget, as a share of it, is not worth another trace."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Budgets in bytes, one per graph in the order they are compiled, and the step's predicted peak under them."""

    budgets: tuple[int, ...]
    limit_bytes: int
    peak_bytes: int


def needs_of(case: Case, partitioner: Partitioner, inner: str, options: Options | None = None) -> list[GraphNeed]:
    """What each graph of a step needs that `partitioner` cuts, as they are compiled; `options` if it is ours."""
    needs: list[GraphNeed] = []
    module, args, kwargs = case

    def seen(fw: fx.GraphModule, bw: fx.GraphModule, count: int) -> None:
        needs.append(need_of(fw, bw, count, machine_of(fw, inner, options)))

    run_once(module, args, kwargs, interpreting(partitioner, inner, seen))
    return needs


def share_budget(case: Case, options: Options, plain: Sequence[GraphNeed]) -> Shared:
    """Find budgets for the graphs of a step whose predicted peak together keeps `options.budget`.

    Args:
        case: module and inputs.
        options: as for the backend; a share is of the step's peak under PyTorch's own cuts.
        plain: what the graphs need under those, as `needs_of` says.

    Raises:
        BudgetError: none were found; states the lowest peak found.
    """
    assert options.budget is not None
    limit = budget_bytes(options.budget, stacked_peak(plain))
    working = [max(need.forward_peak_bytes, need.backward_peak_bytes) - need.saved_bytes for need in plain]
    saved = sum(need.saved_bytes + need.output_bytes for need in plain)
    share, low, high = min(max((limit - max(working)) / max(saved, 1), 0.0), 1.0), 0.0, 1.0
    best: Shared | None = None
    lowest = stacked_peak(plain)
    for _ in range(TRACES):
        budgets = tuple(int(w + share * need.saved_bytes) for w, need in zip(working, plain, strict=True))
        peak = stacked_peak(needs_of(case, sharing(options, budgets), options.inner, options))
        log.info("share %.3f of what %d graphs save: predicted peak %d of %d bytes", share, len(plain), peak, limit)
        lowest = min(lowest, peak)
        if peak <= limit:
            best, low = Shared(budgets, limit, peak), share
            if peak >= (1 - NEAR) * limit or share >= 1.0:
                break
        else:
            high = share
        share = (low + high) / 2
    if best is None:
        raise BudgetError(
            f"budget of {limit} bytes for {len(plain)} graphs: the lowest predicted peak found is {lowest} bytes; "
            "state a larger budget, lower the widths, or make the batch smaller",
            peak_bytes=lowest,
        )
    return best


def sharing(options: Options, budgets: Sequence[int]) -> Partitioner:
    """A partitioner of one step's graphs, in the order they come: each keeps its budget, or the lowest peak it can."""
    left = list(budgets)

    def cut(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> compat.Partition:
        own, before = left.pop(0), copy_graph(gm)  # a partitioner edits the graph that it cuts
        try:
            return _partitioner(options, own)(gm, *args, **kwargs)
        except BudgetError as error:
            return _partitioner(options, error.peak_bytes)(before, *args, **kwargs)

    return cut


def _partitioner(options: Options, budget: int) -> Partitioner:
    return partitioner_for(replace(options, budget=budget), options.inner)
