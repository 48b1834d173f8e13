"""The activation-compression systems side by side: `python -m bench.sources`.

Every preset, our defaults and two codecs by themselves train copies of one model on the same batches, for several
seeds. docs/sources.md says what each system is; bench/README.md defines the numbers. By default over aot_eager, which
needs no compiler: bytes, errors and quality are the plans' own there, peaks and times hold the temporaries of
interpreted encodes.

With `--json`, a row is written as soon as a variant is done; run again, the command goes on: rows that the file has for
this commit and these settings are not measured again. `--table` prints a file's rows as Markdown.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from bench import measure
from bench.compat import recompile_limit
from bench.record import append_rows, environment, interval
from bench.source_table import markdown
from bench.source_tasks import TASKS, Task
from bench.source_variants import make, named
from bench.trial import Job, Trial, run_trial, warm_up
from bench.variants import REFERENCE, Variant
from fxcompress import reports
from fxcompress.plan import KEEP, GraphPlan

EXACT = frozenset({KEEP, "shared", "valueset"})
ROUNDS = 5
"""Steps of which the ratio of step times is the median."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """How one task is run; rows of equal settings and commit are comparable."""

    task: str
    inner: str
    steps: int
    seeds: int
    noise_seeds: int

    def about(self) -> Row:
        """What every row states, and what a row must equal to be taken from a file."""
        made_by = environment()
        return {
            "bench": "sources", "task": self.task, "inner": self.inner, "steps": self.steps, "seeds": self.seeds,
            "noise_seeds": self.noise_seeds, "unit": TASKS[self.task].unit, **made_by,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """One variant with its copy of the model, compiled and measured on the first batch."""

    job: Job
    trial: Trial
    plan: GraphPlan | None


def prepare(variant: Variant, module: nn.Module, batch: tuple[Tensor, ...]) -> Side:
    """Compile one variant on a copy of the model and measure one step."""
    before = len(reports())
    job = Job(copy.deepcopy(module), batch, {})
    trial = run_trial(variant, job)
    made = reports()[before:]
    return Side(job, trial, made[0] if made else None)


def error_and_bias(
    side: Side, variant: Variant, module: nn.Module, reference: Trial, noise_seeds: int
) -> tuple[float, float]:
    """Mean ‖ĝ − g‖/‖g‖ over seeds of the rounding noise, and ‖mean ĝ − g‖/‖g‖."""
    drawn = [side.trial.gradients]
    if variant.backend == "actcomp":
        drawn += [_drawn(variant, module, side.job.args, seed) for seed in range(1, noise_seeds)]
    errors = [measure.rel_grad_error(gradients, reference.gradients) for gradients in drawn]
    mean = {name: torch.stack([gradients[name] for gradients in drawn]).mean(0) for name in reference.gradients}
    return statistics.fmean(errors), measure.rel_grad_error(mean, reference.gradients)


def _drawn(variant: Variant, module: nn.Module, batch: tuple[Any, ...], seed: int) -> Mapping[str, Tensor]:
    """The gradients of the same step under other rounding noise."""
    variant = Variant(variant.name, variant.backend, {**variant.options, "seed": seed})
    job = Job(copy.deepcopy(module), batch, {})
    compiled = variant.compile(job.module)
    with variant.compiling():
        job.step(compiled).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in job.module.named_parameters() if p.grad is not None}


def train(side: Side, task: Task, seed: int, steps: int) -> float:
    """Train from the seed's weights on the seed's batches; returns the quality at the end.

    The learning rate rises over the first tenth and then falls to zero, so that the end is no snapshot of a walk.
    """
    torch.manual_seed(seed)
    module = side.job.module
    module.load_state_dict(task.build().state_dict())
    optimizer = torch.optim.AdamW(module.parameters(), lr=task.learning_rate)
    rising = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(steps - rising, 1))
    )
    batches = task.batches(seed, steps)
    for step, batch in enumerate(track(batches, f"seed {seed}", console=Console(stderr=True), transient=True)):
        optimizer.zero_grad(set_to_none=True)
        # Dropout draws from the global stream: all variants see the same masks.
        torch.manual_seed(seed * steps + step)
        side.trial.compiled(*batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return quality(module, task, seed)


@torch.no_grad()
def quality(module: nn.Module, task: Task, seed: int) -> float:
    """What the task calls quality, in eval mode."""
    module.eval()
    found = task.quality(module, seed)
    module.train()
    return found


def bits_per_element(plan: GraphPlan | None) -> float | None:
    """Payload bits over elements of the tensors that a lossy codec stores; exact for static shapes."""
    decisions = [d for d in plan.decisions if d.codec not in EXACT] if plan is not None else []
    elements = sum(d.tensor.storage_nbytes // getattr(torch, d.tensor.dtype).itemsize for d in decisions)
    return 8 * sum(d.nbytes for d in decisions) / elements if elements else None


class Comparison:
    """One task under one setting: its rows by variant, those of a file first.

    Attributes:
        rows: by name of the variant, in the order in which they were measured.
    """

    def __init__(self, setting: Setting, rows: Mapping[str, Row], folder: Path) -> None:
        self.setting, self.rows = setting, dict(rows)
        self._task, self._folder = TASKS[setting.task], folder
        torch.compiler.reset()
        torch.manual_seed(0)
        self._module, self._batch = self._task.build(), self._task.batches(0, 1)[0]
        self._reference: Side | None = None

    def measure(self, name: str) -> Row:
        """Measure and train one variant; the reference is compiled, and trained if no row has it, before any other."""
        if self._reference is None:
            self._reference = prepare(Variant(REFERENCE, self.setting.inner), self._module, self._batch)
        if name == REFERENCE:
            side, variant = self._reference, Variant(REFERENCE, self.setting.inner)
        else:
            variant = make(name, self._task, self.setting.inner, self._folder, self._error_of)
            side = prepare(variant, self._module, self._batch)
        row = self._row(name, variant, side, self._reference)
        self.rows[name] = row
        return row

    def _error_of(self, name: str) -> float:
        if name not in self.rows:
            raise ValueError(f"no row of {name!r} whose error could be matched; measure it before")
        return float(self.rows[name]["grad_error"])

    def _row(self, name: str, variant: Variant, side: Side, reference: Side) -> Row:
        setting, trial = self.setting, side.trial
        error, bias = error_and_bias(side, variant, self._module, reference.trial, setting.noise_seeds)
        steps = {label: one.job.train_step(one.trial.compiled) for label, one in (("", reference), (name, side))}
        seconds = measure.step_times(steps, rounds=ROUNDS)
        found = [train(side, self._task, seed, setting.steps) for seed in range(setting.seeds)]
        first = self.rows[REFERENCE]["quality"] if name != REFERENCE else found
        gap = interval([a - b for a, b in zip(found, first, strict=True)])
        return {
            **setting.about(),
            "variant": name,
            # Files that were measured first lie in a folder that is gone by then; their names say what they were.
            "options": {k: Path(v).name if k in ("plan", "calibration") else v for k, v in variant.options.items()},
            "bits_per_element": bits_per_element(side.plan),
            "saved_bytes": trial.saved_bytes,
            "peak_bytes": trial.memory.peak_bytes,
            "predicted_peak_bytes": trial.predicted_peak_bytes,
            "grad_error": error,
            "bias": bias,
            "step_ratio": measure.paired_ratio(seconds[name], seconds[""]),
            "quality": found,
            "difference": gap.mean,
            "half_width": gap.half_width,
        }


def stored(path: Path | None, setting: Setting) -> dict[str, Row]:
    """The rows of a file that this commit made under this setting, by variant."""
    if path is None or not path.exists():
        return {}
    about = setting.about()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["variant"]: row for row in rows if all(row.get(key) == value for key, value in about.items())}


def run(setting: Setting, names: Sequence[str], path: Path | None, deadline: float) -> list[Row]:
    """The rows of the named variants and the reference; none is begun after `deadline`, seconds of `time.monotonic`."""
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(setting, stored(path, setting), Path(folder))
        wanted = [REFERENCE, *names]
        for name in wanted:
            if name not in comparison.rows and time.monotonic() < deadline:
                row = comparison.measure(name)
                if path is not None:
                    append_rows(path, [row])
        return [comparison.rows[name] for name in wanted if name in comparison.rows]


def main() -> int:
    """Run the chosen tasks."""
    arguments = _arguments()
    if arguments.table:
        rows = [json.loads(line) for line in arguments.table.read_text(encoding="utf-8").splitlines()]
        print(markdown(rows))
        return 0
    # One forward is compiled once per variant and noise seed; beyond the limit Dynamo would run it uncompiled.
    with recompile_limit(256):
        warm_up(arguments.inner)
        deadline = time.monotonic() + 60 * arguments.minutes
        for name in arguments.tasks.split(","):
            steps = 2 if arguments.quick else arguments.steps or TASKS[name].steps
            seeds, noise = (2, 2) if arguments.quick else (arguments.seeds, arguments.noise_seeds)
            setting = Setting(name, arguments.inner, steps, seeds, noise)
            print(markdown(run(setting, named(arguments.variants), arguments.json, deadline)), flush=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    parser.add_argument(
        "--variants",
        default="all",
        help="comma-separated: presets, default, block2d-2, affine-2; `all` of these; `matched`: ours@PRESET, our "
        "fewest bytes at no more error than that preset's row (or ours@0.05: than a number; ours:64@0.05: with "
        "64 elements per range instead of 256); `curve`: widths and bounds of comet",
    )
    parser.add_argument("--curve", dest="variants", action="store_const", const="curve", help="--variants curve")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds of training")
    parser.add_argument("--noise-seeds", type=int, default=3, help="seeds of rounding noise for error and bias")
    parser.add_argument("--steps", type=int, help="training steps (default: the task's own)")
    parser.add_argument("--inner", default="aot_eager", choices=("inductor", "aot_eager"))
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further variant after this time")
    parser.add_argument("--quick", action="store_true", help="two steps, two seeds")
    parser.add_argument("--json", type=Path, help="append one JSON line per variant to this file")
    parser.add_argument("--table", type=Path, help="print this file's rows as Markdown and measure nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tasks.split(",") if name not in TASKS]:
        parser.error(f"unknown task {unknown[0]!r}; known: {', '.join(TASKS)}")
    try:
        named(arguments.variants)
    except ValueError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
