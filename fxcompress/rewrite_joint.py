"""From a joint graph to the rewritten forward and backward: logits in chunks, a cut, and what it saves in few bits."""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Iterator, Sequence

import torch
from torch import fx

from fxcompress import compat, ledger, pipeline
from fxcompress.chunk_to_budget import Made, chunk_to_budget
from fxcompress.cut_as_pytorch import cut_as_pytorch
from fxcompress.cut_to_budget import Rewriter
from fxcompress.error_table import ErrorTable
from fxcompress.errors import AccuracyError, BudgetError, FxcompressError, PlanError, UnsupportedGraphError
from fxcompress.facts import Peak
from fxcompress.limits import Budget, widest
from fxcompress.options import Options
from fxcompress.passes.align_names import align_names
from fxcompress.passes.chunk_loss import chunk_loss, cut_chunked
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.find_saved import placeholders, source_of
from fxcompress.plain_cut import plain_step
from fxcompress.plan import Plan
from fxcompress.rank_cuts import overhead_s
from fxcompress.roomy_stack import with_room

_WIDTHS = ((8, 8), (4, 8), (4, 4), (2, 2))
"""`bits` and `operand_bits` that cuts are made for where both a budget and a limit on the error are stated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to do with a joint graph that `cut` cuts."""

    cut: compat.Cutter
    options: Options
    num_fwd_outputs: int
    static_indices: Sequence[int] | None
    decompose: bool
    """Whether new nodes are decomposed as Inductor's are."""
    plan: Plan | None = None
    errors: ErrorTable | None = None


def refuse_unsupported(joint: fx.GraphModule) -> None:
    """Raise `UnsupportedGraphError` for joint graphs that we cannot analyse, naming node and reason."""
    for node in joint.graph.nodes:
        val = node.meta.get("val")
        for item in val if isinstance(val, (tuple, list)) else (val,):
            if isinstance(item, torch.Tensor) and item.layout is torch.jagged:
                raise UnsupportedGraphError(f"{node.name}: nested tensor ({item.layout})")
            sizes = item.shape if isinstance(item, torch.Tensor) else ()
            for size in sizes:
                if isinstance(size, torch.SymInt) and not size.node.has_hint():
                    raise UnsupportedGraphError(f"{node.name}: data-dependent size {size} in {tuple(sizes)}")


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Put off garbage collections: graphs are many objects, and nearly all are alive until the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def rewritten_pair(gm: fx.GraphModule, request: Request) -> pipeline.Result:
    """Cut a joint graph and rewrite the pair; the first of the cuts that a budget allows whose result keeps it.

    Raises:
        UnsupportedGraphError: the graph cannot be analysed.
        BudgetError, AccuracyError, PlanError: as `pipeline.run`.
    """
    refuse_unsupported(gm)
    decided = pipeline.decided(request.plan, request.options)
    place = _place(gm)
    try:
        with _without_collections(), compat.graphs_edited_fast():
            cutting = _without_budget if decided.budget is None else _within_budget
            made = with_room(cutting)(gm, request, decided)
    except BudgetError as error:
        raise BudgetError(f"{error}{place}", peak_bytes=error.peak_bytes) from error
    plan = dataclasses.replace(made.result.plan, loss=made.loss)
    if (plain := made.plain) and made.loss.chunks:
        plan = dataclasses.replace(plan, plain_saved_bytes=plain.saved_bytes, peak_before=plain.peak)
    return dataclasses.replace(made.result, plan=plan)


def _place(joint: fx.GraphModule) -> str:
    """What tells a graph that keeps no budget from the others of its step."""
    source = next((source for node in joint.graph.nodes if (source := source_of(node))), "")
    text = f"; the graph begins at {source}" if source else ""
    if ledger.reports():
        text += "; several graphs keep a budget each, and `fxcompress plan` shares one between those of a step"
    return text


def _without_budget(gm: fx.GraphModule, request: Request, decided: Options) -> Made:
    """PyTorch's cut, rewritten."""
    loss = chunk_loss(gm, request.num_fwd_outputs, request.options, request.plan)
    plain = plain_step(request.cut, decided.inner, request.num_fwd_outputs) if loss.extra else None
    cutter = cut_chunked(loss, request.cut) if loss.extra else request.cut
    rewriting: Rewriter = functools.partial(_rewritten, request, peak_before=plain.peak if plain else None)
    return Made(cut_as_pytorch(cutter, rewriting, decided, compared=plain is None), loss.decision, plain)


def cut_settings(options: Options, errors: ErrorTable | None = None) -> list[Options]:
    """Options to make cuts for, the widest first.

    A limit on the error leaves the widths open, and with a budget the best cut depends on them: those that `errors`
    knows, or all.
    """
    start = widest(options)
    if options.max_error is None or options.budget is None:
        return [start]
    known = {(graph.bits, graph.operand_bits) for graph in errors.graphs} if errors is not None else set()
    widths = [each for each in _WIDTHS if not known or each in known]
    return [dataclasses.replace(start, bits=bits, operand_bits=operand) for bits, operand in widths]


def _within_budget(gm: fx.GraphModule, request: Request, decided: Options) -> Made:
    """As `chunk_to_budget`, under the setting that leads to the cheapest result; a plan is made for one of them."""
    rewriting: Rewriter = functools.partial(_rewritten, request)
    settings = cut_settings(decided, request.errors)
    before = copy_graph(gm) if len(settings) > 1 else gm  # PyTorch's partitioner edits the graph that it cuts
    made: list[Made] = []
    failures: list[FxcompressError] = []
    for setting in settings:
        graph = copy_graph(before) if len(settings) > 1 else gm
        try:
            made.append(chunk_to_budget(graph, request.cut, rewriting, setting, request.plan, request.num_fwd_outputs))
        except (BudgetError, AccuracyError, PlanError) as error:
            failures.append(error)
        if made and request.plan is not None:
            break
    if not made:
        raise _nearest(failures)
    return min(made, key=lambda each: overhead_s(each.result) + each.loss.extra_s)


def _nearest(failures: Sequence[FxcompressError]) -> FxcompressError:
    """The least error of those that keep the budget, or the lowest peak."""
    inexact = [error for error in failures if isinstance(error, AccuracyError)]
    over = [error for error in failures if isinstance(error, BudgetError)]
    if inexact:
        return min(inexact, key=lambda error: error.rel_error)
    return min(over, key=lambda error: error.peak_bytes) if over else failures[0]


def _rewritten(
    request: Request,
    pair: compat.Partition,
    plain_saved_bytes: int | None,
    budget: Budget | None,
    peak_before: Peak | None = None,
) -> pipeline.Result:
    fw, bw = pair
    align_names(fw, bw, request.num_fwd_outputs)
    inputs = placeholders(fw)
    return pipeline.run(
        fw,
        bw,
        request.options,
        num_fwd_outputs=request.num_fwd_outputs,
        parameters=[inputs[i].name for i in request.static_indices or () if i < len(inputs)],
        plan=request.plan,
        plain_saved_bytes=plain_saved_bytes,
        peak_before=peak_before,
        decompositions=compat.inductor_decompositions() if request.decompose else None,
        budget=budget,
        errors=request.errors,
    )
