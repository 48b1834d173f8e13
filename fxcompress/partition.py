"""The partitioner: PyTorch's cut, then our rewriting of what it saves.

`ActcompPartitioner` sits in Inductor's `custom_partitioner_fn`; `partition_fn(options)` is the same as a plain
function for `aot_autograd(partition_fn=…)` in other stacks.
"""

import dataclasses
import functools
import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxcompress import compat, ledger, pipeline, plan_io
from fxcompress.cut_to_budget import Cutter, Rewriter, cut_to_budget
from fxcompress.error_table import ErrorTable
from fxcompress.errors import BudgetError, PlanError, UnsupportedGraphError
from fxcompress.limits import Budget, widest
from fxcompress.options import Options
from fxcompress.passes.align_names import align_names
from fxcompress.passes.chunk_loss import chunk_loss, cut_chunked
from fxcompress.passes.find_saved import placeholders
from fxcompress.plain_cut import plain_step, torch_cut
from fxcompress.plan import Plan

log = logging.getLogger(__name__)
PartitionFn = Callable[..., compat.Partition]
_WIDTHS = ((8, 8), (4, 8), (4, 4), (2, 2))
"""`bits` and `operand_bits` of cuts that are tried where both a budget and a limit on the error are stated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to do with a joint graph that `cut` cuts."""

    cut: Cutter
    options: Options
    num_fwd_outputs: int
    static_indices: Sequence[int] | None
    decompose: bool
    """Whether new nodes are decomposed as Inductor's are."""
    plan: Plan | None = None
    errors: ErrorTable | None = None


class ActcompPartitioner(compat.partitioner_base()):  # type: ignore[misc]
    """Inductor's view of us: a callable with a `uuid` that covers everything its result depends on."""

    def __init__(self, options: Options, *, decompose: bool = True, errors: ErrorTable | None = None) -> None:
        # Where a report is written must not make another cache key.
        self._options = dataclasses.replace(options, save_plan=None)
        self._save_plan = options.save_plan
        self._decompose = decompose
        self._plan = plan_io.load(options.plan) if options.plan else None
        self._errors = plan_io.load_errors(options.calibration) if options.calibration else errors

    def __getstate__(self) -> dict[str, object]:
        state = {"_options": self._options, "_decompose": self._decompose, "_plan": self._plan}
        return {**state, "_errors": self._errors, "_save_plan": None}

    def uuid(self) -> str:
        """Hash of our sources, the options, the replayed plan and the errors calibrated. Never None: caches would then
        ignore us."""
        return digest(self._options, self._plan, self._errors)

    def __call__(
        self,
        gm: fx.GraphModule,
        joint_inputs: Sequence[object],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> compat.Partition:
        options = dataclasses.replace(self._options, save_plan=self._save_plan)
        cut = functools.partial(
            compat.partition,
            gm,
            joint_inputs,
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_indices=static_lifetime_input_indices,
        )
        request = Request(
            cut,
            options,
            num_fwd_outputs,
            static_lifetime_input_indices,
            decompose=self._decompose,
            plan=self._plan,
            errors=self._errors,
        )
        try:
            result = rewritten_pair(gm, request)
        except UnsupportedGraphError as error:
            if options.strict:
                raise
            ledger.record_unchanged(str(error))
            warnings.warn(f"actcomp: a graph is compiled unchanged: {error}", stacklevel=2)
            return cut(rebuild_more=False)
        ledger.record(result.plan, options)
        compat.emit_artifact("actcomp_plan", lambda: plan_io.dumps(ledger.make_plan([result.plan], options)))
        return result.fw, result.bw


def partition_fn(options: Options | None = None) -> PartitionFn:
    """Our partitioner for `aot_autograd(partition_fn=…)`, `aot_module_simplified` or any stack with that contract.

    New nodes are plain ATen, not decomposed further.
    """
    return ActcompPartitioner(options or Options(inner="aot_eager"), decompose=False)


def digest(options: Options, plan: Plan | None, errors: ErrorTable | None = None) -> str:
    """Hash of everything that decides the rewritten graphs, besides the graphs themselves."""
    stored = "".join(plan_io.dumps(each) for each in (plan, errors) if each is not None)
    text = "\n".join((source_digest(), options.canonical(), stored, str(torch.__version__)))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def source_digest() -> str:
    """Hash of our own source files: another version of us must not be served from a cache."""
    import fxcompress.passes

    roots = [Path(__file__).parent, Path(str(fxcompress.passes.__file__)).parent]
    files = sorted({file.resolve() for root in roots for file in root.rglob("*.py")})
    content = hashlib.sha256()
    for file in files:
        content.update(file.name.encode() + b"\0" + file.read_bytes())
    return content.hexdigest()


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


def rewritten_pair(gm: fx.GraphModule, request: Request) -> pipeline.Result:
    """Cut a joint graph and rewrite the pair; the first of the cuts that a budget allows whose result keeps it.

    Raises:
        UnsupportedGraphError: the graph cannot be analysed.
        BudgetError, AccuracyError, PlanError: as `pipeline.run`.
    """
    refuse_unsupported(gm)
    count = request.num_fwd_outputs
    loss = chunk_loss(gm, count, request.options, request.plan)
    decided = pipeline.decided(request.plan, request.options)
    whole = plain_step(request.cut, decided.inner, count) if loss.extra else None
    cutter: Cutter = functools.partial(cut_chunked, loss, request.cut) if loss.extra else request.cut
    rewriting = functools.partial(_rewritten, request)
    if decided.budget is None:
        result = rewriting(*torch_cut(cutter, rebuild_more=True), None)
    else:
        plain_peak_bytes = whole.peak.peak_bytes if whole else None
        result = _within_budget(cutter, rewriting, decided, count + loss.extra, plain_peak_bytes)
    made = dataclasses.replace(result.plan, loss=loss.decision)
    if whole:
        made = dataclasses.replace(made, plain_saved_bytes=whole.saved_bytes, peak_before=whole.peak)
    return dataclasses.replace(result, plan=made)


def cut_settings(options: Options) -> list[Options]:
    """Options to look for a cut under. A limit on the error leaves the widths open: the widest that keep the budget
    leave the most choice."""
    if options.max_error is None or options.budget is None:
        return [widest(options)]
    start = widest(options)
    return [dataclasses.replace(start, bits=bits, operand_bits=operand) for bits, operand in _WIDTHS]


def _within_budget(
    cutter: Cutter, rewriting: Rewriter, decided: Options, num_fwd_outputs: int, plain_peak_bytes: int | None
) -> pipeline.Result:
    """As `cut_to_budget`, under the first setting that leads to a result."""
    failures: list[BudgetError | PlanError] = []
    for setting in cut_settings(decided):
        try:
            return cut_to_budget(cutter, rewriting, setting, num_fwd_outputs, plain_peak_bytes)
        except (BudgetError, PlanError) as error:
            failures.append(error)
    over = [error for error in failures if isinstance(error, BudgetError)]
    raise min(over, key=lambda error: error.peak_bytes) if over else failures[0]


def _rewritten(
    request: Request, pair: compat.Partition, plain_saved_bytes: int | None, budget: Budget | None
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
        decompositions=compat.inductor_decompositions() if request.decompose else None,
        budget=budget,
        errors=request.errors,
    )
