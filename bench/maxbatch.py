"""Check `fxcompress maxbatch` by running what it answers: `python -m bench.maxbatch [--models a,b] [--memory 32MiB]`.

For each model and variant the largest batch is found on fake tensors; then one real step of that batch, and one of the
next, is compiled and run, and its peak is taken from the allocator's events (see measure.py). Parameters, gradients and
the optimizer's state are counted alike on both sides.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from bench.models.zoo import ZOO, Case
from bench.record import append_rows, environment, megabytes, wide_console
from bench.trial import Job, run_trial, warm_up
from bench.variants import Variant, variants
from fxcompress import Options, compat
from fxcompress.maxbatch import Probe, max_batch
from fxcompress.option_rules import parse_bytes

VARIANTS = ("plain", "actcomp")
COLUMNS = ("model", "variant", "batch", "memory MB", "predicted MB", "measured MB", "peak predicted/measured", "within")


@dataclass(frozen=True, slots=True)
class Row:
    """One step that was predicted and run. `answer`: the largest batch that should fit, else the first that should not.
    Totals are of everything `maxbatch` counts."""

    model: str
    variant: str
    inner: str
    batch: int
    answer: bool
    memory_bytes: int
    predicted_peak_bytes: int
    peak_bytes: int
    predicted_total_bytes: int
    total_bytes: int

    @property
    def within(self) -> bool:
        """Whether the measured step fits the memory."""
        return self.total_bytes <= self.memory_bytes


def checked(model: str, memory_bytes: int, inner: str) -> list[Row]:
    """Find the largest batches of one model, run them, and run the next ones."""
    found = max_batch(ZOO[model], memory_bytes, options=Options(inner=inner), variants=VARIANTS)
    rows = []
    for answer in found.answers:
        for probe in (answer.largest, answer.next):
            if probe is not None:
                rows.append(_run(model, variants(inner)[answer.variant], inner, probe, memory_bytes))
    return rows


def _run(model: str, variant: Variant, inner: str, probe: Probe, memory_bytes: int) -> Row:
    torch.compiler.reset()
    trial = run_trial(variant, Job(*with_rows(ZOO[model](), probe.batch)))
    predicted, peak = probe.footprint, trial.memory.peak_bytes
    return Row(
        model=model,
        variant=variant.name,
        inner=inner,
        batch=probe.batch,
        answer=probe.fits,
        memory_bytes=memory_bytes,
        predicted_peak_bytes=predicted.peak_bytes,
        peak_bytes=peak,
        predicted_total_bytes=predicted.total_bytes,
        total_bytes=predicted.total_bytes - predicted.peak_bytes + peak,
    )


def with_rows(case: Case, rows: int) -> Case:
    """A case whose tensors have `rows` rows, those there repeated."""

    def repeat(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(rows) % len(tensor)]

    module, args, kwargs = case
    return module, compat.map_tensors(repeat, args), compat.map_tensors(repeat, kwargs)


def table(rows: Sequence[Row]) -> Table:
    """One line per step that was run."""
    view = Table(*COLUMNS)
    for row in rows:
        view.add_row(
            row.model,
            row.variant,
            f"{row.batch}{'' if row.answer else ' (one too many)'}",
            megabytes(row.memory_bytes),
            megabytes(row.predicted_total_bytes),
            megabytes(row.total_bytes),
            f"{row.predicted_peak_bytes / row.peak_bytes:.3f}",
            str(row.within),
        )
    return view


def main() -> int:
    """Print the table and append JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="gpt2,vit,resnet", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--memory", default="32MiB", help="what a step may take")
    parser.add_argument("--inner", default="aot_eager", choices=("inductor", "aot_eager"))
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warm_up(arguments.inner)
    memory_bytes = parse_bytes(arguments.memory)
    rows = [row for name in arguments.models.split(",") for row in checked(name, memory_bytes, arguments.inner)]
    wide_console().print(table(rows))
    if arguments.json:
        about = {"bench": "maxbatch", **environment()}
        append_rows(arguments.json, ({**about, **asdict(row)} for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
