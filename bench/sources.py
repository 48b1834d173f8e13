"""The activation-compression systems side by side: `python -m bench.sources`.

Every preset, our defaults and two codecs by themselves train copies of one model on the same batches in lock-step, for
several seeds. docs/sources.md says what each system is; bench/README.md defines the numbers. By default over
aot_eager, which needs no compiler: bytes, errors and quality are the plans' own there, peaks and times hold the
temporaries of interpreted encodes.
"""

import argparse
import copy
import functools
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
from rich.table import Table
from torch import Tensor, nn

from bench import measure
from bench.record import Interval, append_rows, environment, interval, megabytes, ratio, wide_console
from bench.source_tasks import TASKS, Task
from bench.trial import Job, Trial, run_trial, warm_up
from bench.variants import REFERENCE, Variant
from fxcompress import reports, sensitivity
from fxcompress.options import from_mapping
from fxcompress.plan import KEEP, GraphPlan
from fxcompress.presets import PRESETS

OURS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "block2d-2": {"codec": "block2d", "bits": 2, "operand_bits": 2},
    "affine-2": {"bits": 2, "operand_bits": 2},
}
CURVE: Mapping[str, Mapping[str, Any]] = {
    "comet-2": {"preset": "comet", "bits": 2, "operand_bits": 2, "error_bound": 1.0},
    "comet-8": {"preset": "comet", "bits": 8, "operand_bits": 8, "error_bound": 0.015},
}
"""More points of COMET's bound against bytes; not part of `all`."""
EXACT = frozenset({KEEP, "shared", "valueset"})
COLUMNS = (
    "variant", "bits/elt", "saved MB", "fewer", "peak MB", "lower", "grad error", "bias", "step", "quality",
    "difference",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """One variant with its copy of the model, compiled and measured on the first batch."""

    variant: Variant
    job: Job
    trial: Trial
    plan: GraphPlan | None
    grad_error: float
    bias: float


@dataclass(frozen=True, slots=True)
class Result:
    """What training gave one variant, seed by seed."""

    quality: tuple[float, ...]
    step_ratio: float


def chosen(names: str, inner: str, task: Task, folder: Path) -> list[Variant]:
    """The reference and the named variants; `all` leaves out `CURVE`. Plans of measured presets go to `folder`.

    Raises:
        ValueError: a name is unknown.
    """
    all_of_them: dict[str, Mapping[str, Any]] = dict(OURS)
    all_of_them |= {name: {} if preset.made_by else {"preset": name} for name, preset in PRESETS.items()}
    known = {**all_of_them, **CURVE}
    wanted = list(all_of_them) if names == "all" else [name for name in names.split(",") if name != REFERENCE]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"unknown variant {unknown[0]!r}; known: {', '.join(known)}")
    common = {"inner": inner, "min_bytes": task.min_bytes}
    variants = [Variant(REFERENCE, inner)]
    for name in wanted:
        if name in PRESETS and PRESETS[name].made_by:
            options: dict[str, Any] = {"inner": inner, "plan": _calibrated(common, task, folder / f"{name}.json")}
        else:
            options = {**common, **known[name]}
        variants.append(Variant(name, "actcomp", options))
    return variants


def _calibrated(options: Mapping[str, Any], task: Task, path: Path) -> str:
    """Make the plan of gact-l2 from one step of the untrained model, and say what it cost."""
    torch.manual_seed(0)
    module, batch = task.build(), task.batches(0, 1)[0]
    start = from_mapping({**sensitivity.GACT, **options})
    began = time.perf_counter()
    found = sensitivity.calibrate(module, lambda compiled: compiled(*batch), path, options=start)
    widths = " ".join(str(tensor.bits) for tensor in found.tensors)
    print(
        f"gact-l2: {found.backward_passes} backward passes, {time.perf_counter() - began:.1f} s, bits {widths}, "
        f"expected gradient error {found.expected_error:.3f}"
    )
    return str(path)


def prepare(variants: Sequence[Variant], module: nn.Module, batch: tuple[Tensor, ...], noise_seeds: int) -> list[Side]:
    """Compile and measure every variant on its own copy; the first is the reference."""
    sides: list[Side] = []
    for variant in variants:
        before = len(reports())
        job = Job(copy.deepcopy(module), batch, {})
        trial = run_trial(variant, job)
        made = reports()[before:]
        reference = sides[0].trial.gradients if sides else trial.gradients
        drawn = [trial.gradients, *(_drawn(variant, module, batch, seed) for seed in range(1, noise_seeds))]
        errors = [measure.rel_grad_error(gradients, reference) for gradients in drawn]
        mean = {name: torch.stack([gradients[name] for gradients in drawn]).mean(0) for name in reference}
        bias = measure.rel_grad_error(mean, reference)
        sides.append(Side(variant, job, trial, made[0] if made else None, statistics.fmean(errors), bias))
    return sides


def _drawn(variant: Variant, module: nn.Module, batch: tuple[Tensor, ...], seed: int) -> Mapping[str, Tensor]:
    """The same step under other rounding noise."""
    if variant.backend == "actcomp":
        variant = Variant(variant.name, variant.backend, {**variant.options, "seed": seed})
    job = Job(copy.deepcopy(module), batch, {})
    compiled = variant.compile(job.module)
    with variant.compiling():
        job.step(compiled).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in job.module.named_parameters() if p.grad is not None}


def train(sides: Sequence[Side], task: Task, seed: int, steps: int) -> tuple[list[float], list[list[float]]]:
    """Train all sides from the same weights on the same batches, one step each in turn; quality and seconds of each."""
    torch.manual_seed(seed)
    fresh = task.build().state_dict()
    for side in sides:
        side.job.module.load_state_dict(fresh)
    optimizers = [torch.optim.AdamW(side.job.module.parameters(), lr=task.learning_rate) for side in sides]
    seconds: list[list[float]] = [[] for _ in sides]
    batches = task.batches(seed, steps)
    for step, batch in enumerate(track(batches, f"seed {seed}", console=Console(stderr=True), transient=True)):
        for index, (side, optimizer) in enumerate(zip(sides, optimizers, strict=True)):
            optimizer.zero_grad(set_to_none=True)
            # Dropout draws from the global stream: all sides see the same masks.
            torch.manual_seed(seed * len(batches) + step)
            seconds[index].append(measure.timed(functools.partial(_step, side, batch)))
            optimizer.step()
    return [quality(side.job.module, task, seed) for side in sides], seconds


def _step(side: Side, batch: tuple[Tensor, ...]) -> None:
    side.trial.compiled(*batch).backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def quality(module: nn.Module, task: Task, seed: int) -> float:
    """What the task calls quality, in eval mode."""
    module.eval()
    found = task.quality(module, seed)
    module.train()
    return found


def compare(
    name: str, task: Task, variants: Sequence[Variant], *, seeds: int, steps: int, noise_seeds: int
) -> tuple[list[Side], list[Result]]:
    """Measure all variants on one task, then train them."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    sides = prepare(variants, task.build(), task.batches(0, 1)[0], noise_seeds)
    runs = [train(sides, task, seed, steps) for seed in range(seeds)]
    seconds = [[second for _, all_s in runs for second in all_s[index]] for index in range(len(sides))]
    results = [
        Result(tuple(found[index] for found, _ in runs), measure.paired_ratio(seconds[index], seconds[0]))
        for index in range(len(sides))
    ]
    return sides, results


def bits_per_element(plan: GraphPlan | None) -> float | None:
    """Payload bits over elements of the tensors that a lossy codec stores; exact for static shapes."""
    decisions = [d for d in plan.decisions if d.codec not in EXACT] if plan is not None else []
    elements = sum(d.tensor.storage_nbytes // getattr(torch, d.tensor.dtype).itemsize for d in decisions)
    return 8 * sum(d.nbytes for d in decisions) / elements if elements else None


def difference(result: Result, reference: Result) -> Interval:
    """Quality minus the reference's, seed by seed."""
    return interval([a - b for a, b in zip(result.quality, reference.quality, strict=True)])


def table(sides: Sequence[Side], results: Sequence[Result], unit: str) -> Table:
    """One line per variant; `fewer` and `lower` divide the reference by the variant."""
    view = Table(*(unit if column == "quality" else column for column in COLUMNS))
    first = sides[0].trial
    for side, result in zip(sides, results, strict=True):
        bits, trial = bits_per_element(side.plan), side.trial
        view.add_row(
            side.variant.name,
            "–" if bits is None else f"{bits:.2f}",
            megabytes(trial.saved_bytes),
            ratio(first.saved_bytes, trial.saved_bytes),
            megabytes(trial.memory.peak_bytes),
            ratio(first.memory.peak_bytes, trial.memory.peak_bytes),
            f"{side.grad_error:.3f}",
            f"{side.bias:.3f}",
            ratio(result.step_ratio, 1),
            f"{statistics.fmean(result.quality):.4f}",
            "" if side is sides[0] else str(difference(result, results[0])),
        )
    return view


def rows(name: str, sides: Sequence[Side], results: Sequence[Result], steps: int) -> list[dict[str, Any]]:
    """One JSON row per variant."""
    about = {"bench": "sources", "task": name, "steps": steps, "unit": TASKS[name].unit, **environment()}
    found = []
    for side, result in zip(sides, results, strict=True):
        gap, trial = difference(result, results[0]), side.trial
        found.append(
            {
                **about,
                "variant": side.variant.name,
                "options": dict(side.variant.options),
                "bits_per_element": bits_per_element(side.plan),
                "saved_bytes": trial.saved_bytes,
                "peak_bytes": trial.memory.peak_bytes,
                "predicted_peak_bytes": trial.predicted_peak_bytes,
                "grad_error": side.grad_error,
                "bias": side.bias,
                "step_ratio": result.step_ratio,
                "quality": result.quality,
                "difference": gap.mean,
                "half_width": gap.half_width,
            }
        )
    return found


def main() -> int:
    """Run the chosen tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    parser.add_argument("--variants", default="all", help="comma-separated presets, or default, block2d-2, affine-2")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds of training")
    parser.add_argument("--noise-seeds", type=int, default=3, help="seeds of rounding noise for error and bias")
    parser.add_argument("--steps", type=int, help="training steps (default: the task's own)")
    parser.add_argument("--inner", default="aot_eager", choices=("inductor", "aot_eager"))
    parser.add_argument("--quick", action="store_true", help="two steps, two seeds")
    parser.add_argument("--json", type=Path, help="append one JSON line per variant to this file")
    arguments = parser.parse_args()
    names = arguments.tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        parser.error(f"unknown task {unknown[0]!r}; known: {', '.join(TASKS)}")
    console = wide_console()
    # One forward is compiled once per variant and noise seed; beyond the limit Dynamo would run it uncompiled.
    torch._dynamo.config.recompile_limit = 256
    warm_up(arguments.inner)
    for name in names:
        task = TASKS[name]
        steps = 2 if arguments.quick else arguments.steps or task.steps
        seeds, noise = (2, 2) if arguments.quick else (arguments.seeds, arguments.noise_seeds)
        with tempfile.TemporaryDirectory() as folder:
            variants = chosen(arguments.variants, arguments.inner, task, Path(folder))
            sides, results = compare(name, task, variants, seeds=seeds, steps=steps, noise_seeds=noise)
        console.print(f"{name}: {steps} steps x {seeds} seeds, inner={arguments.inner}")
        console.print(table(sides, results, task.unit))
        if arguments.json:
            append_rows(arguments.json, rows(name, sides, results, steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
