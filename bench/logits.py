"""What chunked logits save: `python -m bench.logits measure` and `python -m bench.logits simulate`.

`measure` trains one step of language models with large vocabularies on this machine, compiled by plain Inductor and by
actcomp with whole and with chunked logits: allocator peaks, step times in turns, and the gradient's distance to
float64. `simulate` traces models of real size in bf16 on fake tensors and prints the predicted peaks of PyTorch's
min-cut and of actcomp. Nothing of that size is allocated, and nothing compiled.
"""

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import fxcompress
from bench import measure
from bench.models.vocab import MEASURED, SIMULATED
from bench.record import append_rows, environment, megabytes, ratio, wide_console
from bench.step_graphs import partition, plain, trace_bf16
from bench.trial import Job, run_trial, warm_up
from bench.variants import REFERENCE, Variant, variants
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.liveness import Machine, find_peak

COLUMNS = (
    "variant", "chunks", "logits MB", "peak MB", "lower", "predicted", "to float64", "to plain", "step", "first s",
)  # fmt: skip
WHOLE = "actcomp-whole"
COMPARED = (REFERENCE, WHOLE, "actcomp", "actcomp-exact")
OPTIONS: Mapping[str, Options] = {
    "actcomp-whole": Options(loss_chunks=0),
    "actcomp": Options(),
    "actcomp-4bit": Options(operand_bits=4),
    "actcomp-4bit-32": Options(operand_bits=4, loss_chunks=32),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one variant. Bytes; times relative to those of `actcomp-whole`."""

    model: str
    variant: str
    chunks: int = 0
    logits_bytes: int = 0
    peak_bytes: int = 0
    total_peak_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    peak_at: str = ""
    """Where the predicted peak stands."""
    loss: float | None = None
    error_to_float64: float | None = None
    """Relative error of the whole gradient to a float64 step without compiling."""
    error_to_plain: float | None = None
    step_ratio: float | None = None
    compile_s: float | None = None


def measured(model: str, names: Sequence[str], *, bf16: bool, rounds: int) -> list[Row]:
    """Measure one model under variants of these names, plain Inductor first; times are over `actcomp-whole`, which
    differs from `actcomp` in the logits alone."""
    module, args, kwargs = MEASURED[model]()
    job = Job(module, args, kwargs, bf16)
    exact = float64_gradients(job)
    rows: list[Row] = []
    steps: dict[str, Any] = {}
    reference: Mapping[str, Tensor] = {}
    for name in names:
        before = len(fxcompress.reports())
        trial = run_trial(_variant(name), job)
        plans = fxcompress.reports()[before:]
        reference = reference or trial.gradients
        rows.append(
            Row(
                model,
                name,
                chunks=plans[0].loss.chunks if plans else 0,
                logits_bytes=max((plan.loss.nbytes for plan in plans), default=0),
                peak_bytes=trial.memory.peak_bytes,
                total_peak_bytes=trial.memory.total_peak_bytes,
                predicted_peak_bytes=trial.predicted_peak_bytes,
                loss=trial.loss,
                error_to_float64=measure.rel_grad_error(trial.gradients, exact),
                error_to_plain=measure.rel_grad_error(trial.gradients, reference),
                compile_s=trial.first_step_s,
            )
        )
        steps[name] = job.train_step(trial.compiled)
    seconds = measure.step_times(steps, rounds=rounds)
    return [replace(row, step_ratio=_step_ratio(seconds, row.variant)) for row in rows]


def float64_gradients(job: Job) -> dict[str, Tensor]:
    """The gradients of one step in float64, without compiling and without autocast.

    Inductor draws other dropout masks than this does, so that no distance to a model with dropout means anything.
    """
    wide = replace(job, module=copy.deepcopy(job.module).double(), bf16=False)
    wide.step(wide.module).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in wide.module.named_parameters() if p.grad is not None}


def simulated(model: str) -> list[Row]:
    """Predicted peaks of one model in bf16: PyTorch's min-cut, and ours."""
    joint = trace_bf16(SIMULATED[model])
    peak = find_peak(*partition(joint, plain), joint.num_fwd_outputs, Machine(fused=True))
    rows = [Row(model, REFERENCE, peak_bytes=peak.peak_bytes, peak_at=peak.at)]
    for name, options in OPTIONS.items():
        partition(joint, ActcompPartitioner(options))
        plan = fxcompress.reports()[-1]
        loss, after = plan.loss, plan.peak_after
        rows.append(Row(model, name, loss.chunks, loss.nbytes, after.peak_bytes, peak_at=after.at))
    return rows


def _variant(name: str) -> Variant:
    return variants()[name]


def _step_ratio(seconds: Mapping[str, list[float]], name: str) -> float:
    return measure.paired_ratio(seconds[name], seconds[WHOLE])


def table(rows: Sequence[Row]) -> Table:
    """One line per variant."""
    view = Table(*COLUMNS, title=rows[0].model, title_justify="left")
    for row in rows:
        view.add_row(
            row.variant,
            str(row.chunks),
            megabytes(row.logits_bytes),
            megabytes(row.peak_bytes),
            ratio(rows[0].peak_bytes, row.peak_bytes),
            megabytes(row.predicted_peak_bytes),
            *("–" if error is None else f"{error:.2g}" for error in (row.error_to_float64, row.error_to_plain)),
            ratio(row.step_ratio, 1),
            "–" if row.compile_s is None else f"{row.compile_s:.0f}",
        )
    return view


def main() -> int:
    """Print one table per model."""
    arguments = _arguments()
    console = wide_console()
    known = MEASURED if arguments.what == "measure" else SIMULATED
    names = list(known) if arguments.models == "all" else arguments.models.split(",")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "measure":
        warm_up("inductor")
    for name in names:
        if arguments.what == "measure":
            rows = measured(name, arguments.variants.split(","), bf16=arguments.bf16, rounds=arguments.rounds)
        else:
            rows = simulated(name)
        console.print(table(rows))
        if arguments.json:
            about = {"bench": "logits", "what": arguments.what, "bf16": arguments.bf16, **environment()}
            append_rows(arguments.json, ({**about, **asdict(row)} for row in rows))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "simulate"))
    parser.add_argument("--models", default="all", help=f"of {', '.join(MEASURED)}; simulate: {', '.join(SIMULATED)}")
    parser.add_argument("--variants", default=",".join(COMPARED), help=f"measure: {REFERENCE} and {WHOLE}, and others")
    parser.add_argument("--bf16", action="store_true", help="measure: run the forward under bf16 autocast")
    parser.add_argument("--rounds", type=int, default=7, help="measure: timed steps per variant")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
