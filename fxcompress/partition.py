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

from fxcompress import compat, ledger, plan_io
from fxcompress.error_table import ErrorTable
from fxcompress.errors import UnsupportedGraphError
from fxcompress.options import GivenOptions, Options, as_options
from fxcompress.plan import Plan
from fxcompress.rewrite_joint import Request, rewritten_pair

log = logging.getLogger(__name__)
PartitionFn = Callable[..., compat.Partition]


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
        cut = compat.Cutter(gm, joint_inputs, num_fwd_outputs, static_lifetime_input_indices)
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


def partition_fn(options: GivenOptions = None) -> PartitionFn:
    """Our partitioner for `aot_autograd(partition_fn=…)`, `aot_module_simplified` or any stack with that contract.

    New nodes are plain ATen, not decomposed further.
    """
    return ActcompPartitioner(as_options({"inner": "aot_eager"} if options is None else options), decompose=False)


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
