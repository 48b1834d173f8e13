"""The straight way from a forward/backward pair to a compressed pair, usable without torch.compile.

    result = pipeline.run(fw, bw, Options(bits=4))
    result.fw, result.bw        # the rewritten graphs
    result.plan                 # every decision with its reason

Each step is one pass of `fxcompress.passes`; the log says how long each took.
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import fx

from fxcompress.compat.kernels import computes_as_generated
from fxcompress.error_table import ErrorTable
from fxcompress.facts import CALLER_HELD, Peak, saved_bytes
from fxcompress.inductor_settings import orders_kernels
from fxcompress.limits import Budget, Findings, Limits, errors_of, fit_accuracy, fit_peak, kept, own_budget, widest
from fxcompress.options import DECIDED_BY_PLAN, Options
from fxcompress.passes.alias import find_storages
from fxcompress.passes.check import check
from fxcompress.passes.choose import SHARED, Choice, Encoding, choose
from fxcompress.passes.collect import collect
from fxcompress.passes.demand import find_demands
from fxcompress.passes.find_channels_last import find_channels_last
from fxcompress.passes.find_idle_width import find_idle_width
from fxcompress.passes.find_masked import find_masked, learned_inputs
from fxcompress.passes.find_rules import find_unmatched
from fxcompress.passes.find_saved import count_user_outputs, find_saved, outputs, placeholders
from fxcompress.passes.find_shared_rows import find_shared_rows
from fxcompress.passes.fingerprint import fingerprint
from fxcompress.passes.fuse import Fusion, fuse
from fxcompress.passes.liveness import Machine, find_peak
from fxcompress.passes.match import find_graph_plan, match
from fxcompress.passes.pick_lowering import pick_lowering
from fxcompress.passes.pin_products import pin_products
from fxcompress.passes.restore_kept import at_their_places, restore_kept
from fxcompress.passes.rewrite import rewrite
from fxcompress.passes.save_early import save_early
from fxcompress.passes.save_predicates import expose_predicates
from fxcompress.passes.shield_inputs import shield_inputs
from fxcompress.passes.shorten_rebuilt import shorten_rebuilt
from fxcompress.passes.store_encoded import store_encoded
from fxcompress.passes.store_gathered import store_gathered
from fxcompress.passes.store_sums import store_sums
from fxcompress.passes.values import find_values
from fxcompress.plan import KEEP, Accuracy, Fit, GraphPlan, Plan
from fxcompress.prepare import prepare

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """A rewritten pair with its plan. `encodings`: what `choose` would encode, whatever limits made of it.
    `timings_ms` lists the passes in the order they ran."""

    fw: fx.GraphModule
    bw: fx.GraphModule
    plan: GraphPlan
    timings_ms: tuple[tuple[str, float], ...]
    encodings: tuple[Encoding, ...] = ()


class _Clock:
    """Runs passes and remembers how long each took."""

    def __init__(self) -> None:
        self.timings_ms: list[tuple[str, float]] = []

    def run(self, name: str, step: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = step()
        self.timings_ms.append((name, 1e3 * (time.perf_counter() - start)))
        return result


def run(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    options: Options | None = None,
    *,
    num_fwd_outputs: int | None = None,
    parameters: Sequence[str] | None = None,
    plan: Plan | None = None,
    plain_saved_bytes: int | None = None,
    peak_before: Peak | None = None,
    decompositions: object | None = None,
    budget: Budget | None = None,
    errors: ErrorTable | None = None,
) -> Result:
    """Plan and rewrite one forward/backward pair. The graphs are edited in place.

    Args:
        fw: forward graph as PyTorch's partitioners return it: user outputs, then saved values.
        bw: backward graph: saved values, then tangents.
        options: what to do; the defaults if None.
        num_fwd_outputs: how many forward outputs are the user's; inferred from the node names if None.
        parameters: names of the forward placeholders that live through the step (parameters, buffers); what depends
            on them alone is rebuilt. None: no placeholder is taken for one.
        plan: replay these decisions instead of choosing.
        plain_saved_bytes: what PyTorch's own cut saves, for the report; the pair's own if None.
        peak_before: the predicted peak of a step under that cut; the pair's own if None.
        decompositions: operator decompositions of the compiler that gets the result, or None.
        budget: where the cut was chosen for a budget, what that comes to; None: what `options.budget` says of the pair.
        errors: with `options.max_error`, what widths do to the gradient; read from `options.calibration` if None.

    Raises:
        BudgetError: the predicted peak of the rewritten pair is above the budget.
        AccuracyError: the gradient's predicted error is above `options.max_error` whatever is chosen.
        OptionError: `options.max_error` without errors.
        UnsupportedGraphError: the pair does not keep the partition contract.
        PlanError: `plan` does not fit, or `errors` know nothing of this graph.
        GraphError: the result breaks the contract (a bug in fxcompress).
    """
    stated = decided(plan, options or Options())
    options = widest(stated)
    clock = _Clock()
    count = count_user_outputs(fw, bw) if num_fwd_outputs is None else num_fwd_outputs
    fused = options.inner == "inductor"
    key = clock.run("fingerprint", lambda: fingerprint(fw, bw))
    user_outputs = outputs(fw)[:count]
    clock.run("expose_predicates", lambda: expose_predicates(bw))
    first = clock.run("analyse", lambda: _analyse(fw, bw, options, count))
    channels_last = find_channels_last(fw) if fused else set()
    machine = Machine(fused, bool(channels_last), fused and orders_kernels(options))
    if peak_before is None:
        peak_before = clock.run("find_peak", lambda: find_peak(fw, bw, count, replace(machine, ends_rows=False)))
    stored = find_graph_plan(plan, key, options.inner, "plan") if plan is not None else None
    prepared = clock.run(
        "prepare", lambda: prepare(fw, bw, options, count, parameters or (), first, channels_last, stored)
    )
    if "save_early" not in options.disable_passes:
        clock.run("save_early", lambda: save_early(fw, count))
    if fused and "store_sums" not in options.disable_passes:
        clock.run("store_sums", lambda: store_sums(bw))
    found = clock.run("analyse", lambda: _analyse(fw, bw, options, count)) if prepared.edited else first
    given = match(stored, found.saved, "plan") if stored is not None else None
    choice = clock.run(
        "choose",
        lambda: choose(
            found.saved,
            found.storages,
            found.values,
            options,
            prepared.exact_only,
            channels_last=channels_last,
            given=given,
        ),
    )
    encodings = choice.encodings
    doubts = (find_idle_width(choice.decisions, stated), find_shared_rows(encodings, options))
    for text in (*find_unmatched(found.storages, options), *doubts):
        if text and stored is None:
            warnings.warn(f"actcomp: {text}", stacklevel=2)
    fits: tuple[Fit, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    limits = Limits(stated, budget or own_budget(fw, bw, options, peak_before), machine)
    if stored is None and stated.max_error is not None:
        known = errors_of(key, stated, errors)
        fitted = clock.run("fit_error", lambda: fit_accuracy(fw, bw, found, choice, limits, known))
        choice, fits, accuracies = fitted
    elif stored is None and limits.budget is not None:
        choice, fit = clock.run("fit_budget", lambda: fit_peak(fw, bw, found, choice, limits))
        fits = (fit,)
    kept_names: set[str] = set()
    if prepared.replaced and "restore_kept" not in options.disable_passes:
        kept_names = {decision.tensor.name for decision in choice.decisions if decision.codec == KEEP}
        clock.run("restore_kept", lambda: restore_kept(fw, bw, prepared.replaced, kept_names, count))
        choice = replace(choice, encodings=at_their_places(fw, bw, choice.encodings, count))
    normalized = [each for each in prepared.replaced if each.name not in kept_names]
    if normalized:
        clock.run("shorten_rebuilt", lambda: shorten_rebuilt(bw, normalized))
    compiled = fused and "pick_lowering" not in options.disable_passes
    outline = compiled and "outline" not in options.disable_passes
    choice = clock.run("pick_lowering", lambda: pick_lowering(choice, kernels=compiled, outline=outline))
    fusions: tuple[Fusion, ...] = ()
    if compiled and "fuse" not in options.disable_passes and computes_as_generated():
        choice, fusions = clock.run("fuse", lambda: fuse(fw, choice, count, tight=limits.budget is not None))
    if channels_last and "shield_inputs" not in options.disable_passes:
        clock.run("shield_inputs", lambda: shield_inputs(fw, bw))
    if fused and "store_encoded" not in options.disable_passes:
        clock.run("store_encoded", lambda: store_encoded(fw, choice.encodings))
    stand_ins = clock.run(
        "rewrite",
        lambda: rewrite(fw, bw, choice.encodings, fusions, decompositions=decompositions, seed=options.seed),
    )
    user_outputs = [stand_ins.get(out, out) if isinstance(out, fx.Node) else out for out in user_outputs]
    if fused and "pin_products" not in options.disable_passes:
        clock.run("pin_products", lambda: pin_products(fw, bw))
    if fused and "store_gathered" not in options.disable_passes:
        clock.run("store_gathered", lambda: store_gathered(bw))
    clock.run("check", lambda: check(fw, bw, count, user_outputs))
    peak_after = clock.run("find_peak", lambda: find_peak(fw, bw, count, machine))
    before = saved_bytes(first.saved)
    plain = before if plain_saved_bytes is None else plain_saved_bytes
    fits = stored.fits if stored is not None else kept(fits, peak_after, stated)
    accuracies = stored.accuracies if stored is not None else accuracies
    graph_plan = _graph_plan(key, choice, before, plain, peak_before, peak_after)
    graph_plan = replace(graph_plan, fits=fits, accuracies=accuracies)
    log.info("%s", _Summary(graph_plan, clock))
    return Result(fw, bw, graph_plan, tuple(clock.timings_ms), encodings)


@dataclass(frozen=True, slots=True)
class _Summary:
    """One log line, formatted only if someone reads it."""

    plan: GraphPlan
    clock: _Clock

    def __str__(self) -> str:
        plan = self.plan
        encoded = sum(decision.codec not in (KEEP, SHARED) for decision in plan.decisions)
        passes = ", ".join(f"{name} {ms:.0f} ms" for name, ms in self.clock.timings_ms)
        return (
            f"graph {plan.fingerprint}: {encoded} of {len(plan.decisions)} saved tensors encoded, saved bytes "
            f"{plan.saved_bytes_before} -> {plan.saved_bytes_after}; {passes}"
        )


def _analyse(fw: fx.GraphModule, bw: fx.GraphModule, options: Options, count: int) -> Findings:
    pairs = find_saved(fw, bw, num_fwd_outputs=count)
    storages = find_storages(fw, pairs, count)
    values = find_values(fw)
    demands = find_demands(bw, pairs, values)
    masked = find_masked(fw, learned_inputs(placeholders(fw), outputs(bw)))
    return Findings(collect(storages, demands, values, masked, options.min_bytes), storages, values)


def decided(plan: Plan | None, options: Options) -> Options:
    """The options that a plan was made with, where they decide which graph its decisions are about."""
    made = {name: value for name, value in (plan.options if plan is not None else ()) if name in DECIDED_BY_PLAN}
    return replace(options, plan=None, **made) if made else options  # type: ignore[arg-type]


def _graph_plan(key: str, choice: Choice, before: int, plain: int, peak_before: Peak, peak_after: Peak) -> GraphPlan:
    after = sum(d.nbytes for d in choice.decisions if d.tensor.refusal not in CALLER_HELD)
    return GraphPlan(key, choice.decisions, before, after, plain, peak_before, peak_after)
