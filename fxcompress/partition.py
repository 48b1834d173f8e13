"""The partitioner: PyTorch's cut, then our rewriting of what it saves.

`ActcompPartitioner` sits in Inductor's `custom_partitioner_fn`; `partition_fn(options)` is the same as a plain
function for `aot_autograd(partition_fn=…)` in other stacks.
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxcompress import compat, ledger, pipeline, plan_io
from fxcompress.chunk_to_budget import Made, chunk_to_budget
from fxcompress.cut_as_pytorch import cut_as_pytorch
from fxcompress.cut_to_budget import Cutter, Rewriter
from fxcompress.errors import UnsupportedGraphError
from fxcompress.options import Options
from fxcompress.passes.align_names import align_names
from fxcompress.passes.chunk_loss import chunk_loss, cut_chunked
from fxcompress.passes.find_saved import placeholders
from fxcompress.plain_cut import plain_step
from fxcompress.plan import Plan

log = logging.getLogger(__name__)
PartitionFn = Callable[..., compat.Partition]


class ActcompPartitioner(compat.partitioner_base()):  # type: ignore[misc]
    """Inductor's view of us: a callable with a `uuid` that covers everything its result depends on."""

    def __init__(self, options: Options, *, decompose: bool = True) -> None:
        # Where a report is written must not make another cache key.
        self._options = dataclasses.replace(options, save_plan=None)
        self._save_plan = options.save_plan
        self._decompose = decompose
        self._plan = plan_io.load(options.plan) if options.plan else None

    def __getstate__(self) -> dict[str, object]:
        return {"_options": self._options, "_save_plan": None, "_decompose": self._decompose, "_plan": self._plan}

    def uuid(self) -> str:
        """Hash of our sources, the options and the replayed plan. Never None: caches would then ignore us."""
        return digest(self._options, self._plan)

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
        try:
            refuse_unsupported(gm)
            with _without_collections():
                return self._compress(gm, cut, options, num_fwd_outputs, static_lifetime_input_indices)
        except UnsupportedGraphError as error:
            if options.strict:
                raise
            ledger.record_unchanged(str(error))
            warnings.warn(f"actcomp: a graph is compiled unchanged: {error}", stacklevel=2)
            return cut(rebuild_more=False)

    def _compress(
        self,
        gm: fx.GraphModule,
        cut: Cutter,
        options: Options,
        num_fwd_outputs: int,
        static_indices: Sequence[int] | None,
    ) -> compat.Partition:
        """Chunk the logits, cut and rewrite, and record the plan."""
        plan = self._plan
        rewriting = functools.partial(_rewritten, options, plan, num_fwd_outputs, static_indices, self._decompose)
        if pipeline.decided(plan, options).budget is None:
            made = _without_budget(gm, cut, rewriting, options, plan, num_fwd_outputs)
        else:
            made = chunk_to_budget(gm, cut, rewriting, options, plan, num_fwd_outputs)
        recorded = dataclasses.replace(made.result.plan, loss=made.loss)
        if (plain := made.plain) and made.loss.chunks:
            recorded = dataclasses.replace(recorded, plain_saved_bytes=plain.saved_bytes, peak_before=plain.peak)
        ledger.record(recorded, options)
        compat.emit_artifact("actcomp_plan", lambda: plan_io.dumps(ledger.make_plan([recorded], options)))
        return made.result.fw, made.result.bw


def partition_fn(options: Options | None = None) -> PartitionFn:
    """Our partitioner for `aot_autograd(partition_fn=…)`, `aot_module_simplified` or any stack with that contract.

    New nodes are plain ATen, not decomposed further.
    """
    return ActcompPartitioner(options or Options(inner="aot_eager"), decompose=False)


def digest(options: Options, plan: Plan | None) -> str:
    """Hash of everything that decides the rewritten graphs, besides the graphs themselves."""
    stored = "" if plan is None else plan_io.dumps(plan)
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


def _without_budget(
    gm: fx.GraphModule, cut: Cutter, rewriting: Rewriter, options: Options, plan: Plan | None, num_fwd_outputs: int
) -> Made:
    """PyTorch's cut, rewritten."""
    loss = chunk_loss(gm, num_fwd_outputs, options, plan)
    plain = plain_step(cut, options.inner, num_fwd_outputs) if loss.extra else None
    cutter: Cutter = functools.partial(cut_chunked, loss, cut) if loss.extra else cut
    return Made(cut_as_pytorch(cutter, rewriting, options, compared=plain is None), loss.decision, plain)


def _rewritten(
    options: Options,
    plan: Plan | None,
    num_fwd_outputs: int,
    static_indices: Sequence[int] | None,
    decompose: bool,
    pair: compat.Partition,
    plain_saved_bytes: int | None,
    budget: pipeline.Budget | None,
) -> pipeline.Result:
    fw, bw = pair
    align_names(fw, bw, num_fwd_outputs)
    inputs = placeholders(fw)
    return pipeline.run(
        fw,
        bw,
        options,
        num_fwd_outputs=num_fwd_outputs,
        parameters=[inputs[i].name for i in static_indices or () if i < len(inputs)],
        plan=plan,
        plain_saved_bytes=plain_saved_bytes,
        decompositions=compat.inductor_decompositions() if decompose else None,
        budget=budget,
    )
