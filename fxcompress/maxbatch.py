"""The largest batch whose training step fits a memory, with and without compression, on fake tensors alone.

`max_batch(module_factory, memory_bytes, …)` traces the model at a few batch sizes and adds up what is alive at the
predicted peak (`footprint.Footprint`). Every answer has been traced: its batch fits and the next one does not. That
nothing above fits again is assumed. Not counted: the working memory of the optimizer's own step, fragmentation, the
device's context.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from fxcompress import ledger
from fxcompress.batch import Batches, batch_maker
from fxcompress.compat import DataDependentOutputException, DynamicOutputShapeException
from fxcompress.compat.tracing import fake_mode
from fxcompress.errors import BudgetError, FxcompressError, OptionError, nearest
from fxcompress.footprint import STATES, Footprint, GraphNeed, footprint_of, need_of, stacked_peak
from fxcompress.options import GivenOptions, Options, as_options
from fxcompress.plain_cut import machine_of
from fxcompress.solve.largest import Tested, find_largest
from fxcompress.trace import materialize
from fxcompress.watch import interpreting, partitioner_for, run_once

VARIANTS = ("plain", "actcomp", "budget")
"""PyTorch's own cut; ours under the options; ours with what the memory leaves as its budget."""
MOST = 2**16


@dataclass(frozen=True, slots=True)
class Probe:
    """One traced step. `peak_bytes` of a step that misses its budget is that of the best plan found."""

    batch: int
    footprint: Footprint
    graphs: int
    fits: bool
    lowest_peak_bytes: int
    """Under a budget, the lowest peak found reachable; else the peak itself."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The largest batch of one variant. `largest` is None if not even 1 fits, `next` if all up to `most` do."""

    variant: str
    largest: Probe | None
    next: Probe | None
    traces: int


@dataclass(frozen=True, slots=True)
class MaxBatch:
    """What `max_batch` found, and how it varied the batch. `skipped` says why a variant has no answer."""

    memory_bytes: int
    optimizer: str
    varied: str
    answers: tuple[Answer, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Prober:
    """Traces steps of one model; a variant and a batch are traced once."""

    module: nn.Module
    batches: Batches
    options: Options
    optimizer: str
    memory_bytes: int
    done: dict[tuple[str, int], Probe] = field(default_factory=dict)

    def probe(self, variant: str, batch: int) -> Probe:
        if (variant, batch) not in self.done:
            self.done[variant, batch] = self._trace(variant, batch)
        return self.done[variant, batch]

    def _trace(self, variant: str, batch: int) -> Probe:
        args, kwargs = self.batches.make(batch)
        empty = footprint_of(self.module, (args, kwargs), self.optimizer, 0)
        options = self._options(variant, self.memory_bytes - empty.total_bytes)
        needs: list[GraphNeed] = []
        within, known = True, len(ledger.reports())
        try:
            _run(self.module, args, kwargs, options, self.options.inner, needs)
            peak = stacked_peak(needs)
            lowest = min([peak, *(fit.lowest_peak_bytes for plan in ledger.reports()[known:] for fit in plan.fits)])
        except Exception as error:
            cause = getattr(error, "inner_exception", error)  # torch.compile wraps what a backend raises
            if not isinstance(cause, BudgetError):
                error.add_note(f"this was at batch size {batch} ({self.batches.how})")
                raise
            peak, lowest, within = cause.peak_bytes, cause.peak_bytes, False
        footprint = replace(empty, peak_bytes=peak)
        return Probe(batch, footprint, len(needs), within and footprint.total_bytes <= self.memory_bytes, lowest)

    def _options(self, variant: str, left_bytes: int) -> Options | None:
        if variant == "budget":
            return replace(self.options, budget=max(left_bytes, 0))
        return None if variant == "plain" else self.options


def max_batch(
    module_factory: Callable[[], object],
    memory_bytes: int,
    *,
    inputs: Sequence[str] = (),
    options: GivenOptions = None,
    optimizer: str = "adamw",
    variants: Sequence[str] = VARIANTS,
    most: int = MOST,
    progress: Callable[[str], None] = lambda text: None,
) -> MaxBatch:
    """Find the largest batch that fits.

    Args:
        module_factory: as for `explain`.
        memory_bytes: what a step may take, everything that is counted together.
        inputs: specifications such as "f32[B,3,32,32]", B the batch; empty: the factory's inputs, scaled.
        options: as for the backend. `budget` here is a limit of its own; without it the variant "budget" sets one.
        optimizer: whose state is counted: one of `footprint.STATES`.
        variants: of `VARIANTS`, in the order of the answers.
        most: no larger batch is tried.
        progress: told about every trace.

    Raises:
        OptionError: a name is unknown, or it is not clear what the batch is.
        FxcompressError: the model cannot be traced on fake tensors, or saves nothing for backward.
    """
    _check(optimizer, variants)
    options = replace(as_options(options), save_plan=None)
    try:
        with fake_mode() as mode:
            module, args, kwargs = materialize(module_factory, (), mode)
            batches = batch_maker(inputs, args, kwargs, mode)
            prober = _Prober(module, batches, options, optimizer, memory_bytes)
            return _answers(prober, variants, most, progress)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise FxcompressError(
            f"the model reads values while it is built or run ({error}), which fake tensors do not have, and nothing "
            "is allocated here: take that out of the factory, or compare sizes with explain, which runs such models"
        ) from error


def _check(optimizer: str, variants: Sequence[str]) -> None:
    if optimizer not in STATES:
        raise OptionError(f"unknown optimizer {optimizer!r}: {nearest(optimizer, STATES)}")
    for variant in variants:
        if variant not in VARIANTS:
            raise OptionError(f"unknown variant {variant!r}: {nearest(variant, VARIANTS)}")


def _answers(prober: _Prober, variants: Sequence[str], most: int, progress: Callable[[str], None]) -> MaxBatch:
    answers: list[Answer] = []
    skipped: list[tuple[str, str]] = []
    start = prober.batches.start
    for variant in variants:
        if variant == "budget" and (why_not := _why_no_budget(prober)):
            skipped.append((variant, why_not))
            continue
        answers.append(_search(prober, variant, start, most, progress))
        start = max([start, *(answer.largest.batch for answer in answers if answer.largest)])
    return MaxBatch(prober.memory_bytes, prober.optimizer, prober.batches.how, tuple(answers), tuple(skipped))


def _why_no_budget(prober: _Prober) -> str:
    if prober.options.budget is not None:
        return "the options state a budget of their own"
    if prober.options.plan is not None:
        return "a plan is replayed"
    graphs = max((probe.graphs for probe in prober.done.values()), default=1)
    return f"a budget holds per graph, and this step has {graphs}" if graphs > 1 else ""


def _search(prober: _Prober, variant: str, start: int, most: int, progress: Callable[[str], None]) -> Answer:
    def try_size(batch: int) -> tuple[bool, float]:
        progress(f"{variant}: tracing batch {batch}")
        probe = prober.probe(variant, batch)
        return probe.fits, replace(probe.footprint, peak_bytes=probe.lowest_peak_bytes).total_bytes

    base = footprint_of(prober.module, (), prober.optimizer, 0).total_bytes
    found = find_largest(try_size, prober.memory_bytes, base=base, start=start, most=most)

    def probe_of(tested: Tested | None) -> Probe | None:
        return prober.probe(variant, tested.size) if tested else None

    return Answer(variant, probe_of(found.fitting), probe_of(found.failing), found.tests)


def _run(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    options: Options | None,
    inner: str,
    needs: list[GraphNeed],
) -> None:
    """Trace one step; `needs` gets what each of its graphs needs."""
    unchanged = len(ledger.unchanged())

    def seen(fw: fx.GraphModule, bw: fx.GraphModule, count: int) -> None:
        needs.append(need_of(fw, bw, count, machine_of(fw, inner, options)))

    backend = interpreting(partitioner_for(options, inner), inner, seen)
    run_once(module, args, kwargs, backend)
    if reasons := ledger.unchanged()[unchanged:]:
        raise FxcompressError(f"a graph is compiled unchanged, and what it needs is not known: {reasons[0]}")
    if not needs:
        raise FxcompressError("no graph saves anything for backward: the model ran without gradients")
