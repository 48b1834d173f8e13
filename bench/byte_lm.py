"""A GPT on the standard library's source text, plain Inductor against actcomp in one run: `python -m bench.byte_lm`.

Both variants train copies of one model on the same batches in lock-step, for several seeds. bench/README.md defines the
numbers.
"""

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bench import data, measure
from bench.models.gpt import GPT, GPTConfig
from bench.record import append_rows, environment, interval, wide_console
from bench.side_by_side import Side, prepare, summary
from bench.variants import REFERENCE, chosen

SEEDS_APART = 10**6
"""Between the batch streams of two seeds; more than any run has steps."""
HELD_OUT_BATCHES = 4
HELD_OUT_SEED = 2**31
"""Far from every training batch's seed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is trained."""

    config: GPTConfig
    batch: int
    steps: int
    seeds: int
    learning_rate: float = 2e-3


FULL = Scale(GPTConfig(), batch=8, steps=120, seeds=5)
QUICK = Scale(GPTConfig(layers=2, context=64), batch=4, steps=6, seeds=2)


@dataclass(frozen=True, slots=True)
class Run:
    """One variant trained from one seed. Losses in nats per byte, times in seconds."""

    variant: str
    seed: int
    losses: tuple[float, ...]
    held_out: float
    step_s: tuple[float, ...]


def train(
    sides: Sequence[Side], text: data.Split, scale: Scale, seed: int, *, bf16: bool, seconds: float = math.inf
) -> list[Run]:
    """Train all sides from the same initial weights on the same batches, one step each in turn.

    After `seconds`, but not before one step, all sides stop alike.
    """
    deadline = time.monotonic() + seconds
    torch.manual_seed(seed)
    fresh = GPT(scale.config).state_dict()
    losses: list[list[float]] = [[] for _ in sides]
    step_s: list[list[float]] = [[] for _ in sides]
    optimizers = []
    for side in sides:
        side.job.module.load_state_dict(fresh)
        optimizers.append(torch.optim.AdamW(side.job.module.parameters(), lr=scale.learning_rate, betas=(0.9, 0.95)))
    for step in track(range(scale.steps), description=f"seed {seed}", console=Console(stderr=True), transient=True):
        batch = data.text_batch(
            text.train[0], batch=scale.batch, time=scale.config.context, seed=seed * SEEDS_APART + step
        )
        for index, (side, optimizer) in enumerate(zip(sides, optimizers, strict=True)):
            loss, elapsed = side.train_step(batch, optimizer, bf16=bf16)
            losses[index].append(loss)
            step_s[index].append(elapsed)
        if time.monotonic() > deadline:
            break
    held_out = [held_out_loss(side.job.module, text.test[0], scale) for side in sides]
    return [
        Run(side.variant.name, seed, tuple(losses[i]), held_out[i], tuple(step_s[i])) for i, side in enumerate(sides)
    ]


def train_all(
    sides: Sequence[Side], text: data.Split, scale: Scale, seconds: float, *, bf16: bool
) -> tuple[Scale, list[Run]]:
    """Train from seed after seed; returns the scale that `seconds` had room for, and all runs.

    What the first seed has time for in its share, the others do too, so that their final losses can be compared. On a
    machine that slows down meanwhile, later seeds are left out.
    """
    started = time.monotonic()
    runs = train(sides, text, scale, 0, bf16=bf16, seconds=seconds / scale.seeds)
    scale = replace(scale, steps=len(runs[0].losses))
    for seed in range(1, scale.seeds):
        if time.monotonic() - started > seconds:
            scale = replace(scale, seeds=seed)
            break
        runs += train(sides, text, scale, seed, bf16=bf16)
    return scale, runs


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, text: Tensor, scale: Scale) -> float:
    """Mean loss over fixed held-out windows, computed without compiling."""
    batches = [
        data.text_batch(text, batch=scale.batch, time=scale.config.context, seed=HELD_OUT_SEED + number)
        for number in range(HELD_OUT_BATCHES)
    ]
    return statistics.fmean(float(model(*batch)) for batch in batches)


def curves(runs: Sequence[Run], every: int) -> list[str]:
    """One line per variant: training loss every `every` steps, averaged over seeds."""
    names = list(dict.fromkeys(run.variant for run in runs))
    lines = [f"training loss every {every} steps and at the last (nats per byte, mean over seeds)"]
    for name in names:
        per_step = zip(*(run.losses for run in runs if run.variant == name), strict=False)
        means = [statistics.fmean(values) for values in per_step]
        shown = sorted({*range(0, len(means), every), len(means) - 1})
        lines.append(f"{name:>14}  " + " ".join(f"{means[step]:.3f}" for step in shown))
    return lines


def differences(runs: Sequence[Run], name: str) -> list[float]:
    """Held-out loss of `name` minus the reference's, seed by seed."""
    final = {(run.variant, run.seed): run.held_out for run in runs}
    seeds = sorted({run.seed for run in runs})
    return [final[name, seed] - final[REFERENCE, seed] for seed in seeds]


def step_ratio(runs: Sequence[Run], name: str) -> float:
    """Median over all steps of (time of `name`) / (time of the reference in the same step)."""
    times = {(run.variant, run.seed): run.step_s for run in runs}
    seeds = sorted({run.seed for run in runs})
    ours = [second for seed in seeds for second in times[name, seed]]
    return measure.paired_ratio(ours, [second for seed in seeds for second in times[REFERENCE, seed]])


def main() -> int:
    """Run and print; 0 if every variant ran."""
    arguments = _arguments()
    scale = _scale(arguments)
    console = wide_console()
    text = data.stdlib_text()
    torch.manual_seed(0)
    model = GPT(scale.config)
    batch = data.text_batch(text.train[0], batch=scale.batch, time=scale.config.context, seed=0)
    console.print(_headline(scale, model, text))
    copies = [(variant, copy.deepcopy(model)) for variant in chosen(arguments.variants, arguments.inner)]
    sides = prepare(copies, batch, inner=arguments.inner, bf16=arguments.bf16)
    scale, runs = train_all(sides, text, scale, 60 * arguments.budget_minutes, bf16=arguments.bf16)
    console.print(f"trained {scale.steps} steps x {scale.seeds} seeds")
    names = [side.variant.name for side in sides]
    console.print(summary(sides, {name: step_ratio(runs, name) for name in names}))
    for line in curves(runs, max(scale.steps // 10, 1)):
        console.print(line, soft_wrap=True)
    for name in names[1:]:
        final = interval(differences(runs, name))
        console.print(f"held-out loss, {name} minus {REFERENCE}, paired over {scale.seeds} seeds: {final} (95 %)")
    if arguments.json:
        append_rows(arguments.json, _rows(sides, runs, scale, bf16=arguments.bf16))
    return 0


def _scale(arguments: argparse.Namespace) -> Scale:
    base = QUICK if arguments.quick else FULL
    return replace(base, steps=arguments.steps or base.steps, seeds=arguments.seeds or base.seeds)


def _headline(scale: Scale, model: GPT, text: data.Split) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = scale.config
    return (
        f"GPT of {config.layers} layers, width {config.width}, {parameters / 1e6:.2f} M parameters; "
        f"batch {scale.batch} x {config.context} bytes; {len(text.train[0]) / 1e6:.2f} MB of training text, "
        f"{len(text.test[0]) / 1e6:.2f} MB held out"
    )


def _rows(sides: Sequence[Side], runs: Sequence[Run], scale: Scale, *, bf16: bool) -> list[dict[str, Any]]:
    about = {"bench": "byte_lm", "bf16": bf16, **environment()}
    rows = []
    for side in sides:
        name = side.variant.name
        own = [asdict(run) for run in runs if run.variant == name]
        final = interval(differences(runs, name))
        rows.append(
            {
                **about,
                **side.row(),
                "step_ratio": step_ratio(runs, name),
                "held_out_difference": final.mean,
                "held_out_half_width": final.half_width,
                "scale": asdict(scale),
                "runs": own,
            }
        )
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help=f"training steps per seed (default {FULL.steps})")
    parser.add_argument("--seeds", type=int, help=f"paired seeds (default {FULL.seeds})")
    parser.add_argument("--variants", default="plain,actcomp", help="comma-separated, or all")
    parser.add_argument("--inner", default="inductor", choices=("inductor", "aot_eager"))
    parser.add_argument("--bf16", action="store_true", help="run the forward under bf16 autocast")
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few steps")
    parser.add_argument(
        "--budget-minutes", type=float, default=4.0, help="lower the number of steps to train no longer than this"
    )
    parser.add_argument("--json", type=Path, help="append one JSON line per variant to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
