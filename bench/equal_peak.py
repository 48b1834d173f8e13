"""Ours against PyTorch's `activation_memory_budget` at equal measured peak: `python -m bench.equal_peak`.

Per model: PyTorch's cuts at falling budgets are compiled and their peaks measured; then ours at a budget of each peak
below plain's that they reach, and of one that they do not. All step times are taken in one process, in rounds. Ours is
no slower at a peak if a plan of ours whose *measured* peak is no higher takes no more time.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from bench import measure
from bench.compat import recompile_limit
from bench.models.zoo import ZOO
from bench.record import append_rows, described, environment, wide_console
from bench.trial import Job, Trial, run_trial, warm_up
from bench.variants import REFERENCE, Variant, torch_budget

MODELS = "gpt2,vit,resnet,llama,bert,cnn,swin,t5"
SHARES = (0.75, 0.5, 0.25, 0.0)
NEAR = 0.01
"""Peaks that differ by less, as a share of plain's, are equal."""
LOWER = 0.85
"""Of the lowest peak that PyTorch reached: what is asked for beyond."""
NOISE = 1.05
"""Steps whose times differ by less are equally fast here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant of one model. `goal`: of ours, the share of plain's measured peak that was asked for."""

    model: str
    inner: str
    variant: str
    goal: float | None = None
    peak_share: float | None = None
    step_ratio: float | None = None
    """Over plain's, the median over rounds."""
    step_s: float | None = None
    grad_error: float | None = None
    """Against plain's gradient; PyTorch's cuts may draw dropout masks again."""
    error: str | None = None


@dataclass(slots=True)
class _Model:
    """One model with what was compiled for it."""

    name: str
    inner: str
    job: Job
    trials: dict[str, Trial]
    goals: dict[str, float]
    errors: dict[str, str]

    def run(self, variant: Variant, goal: float | None = None) -> Trial | None:
        if goal is not None:
            self.goals[variant.name] = goal
        try:
            self.trials[variant.name] = run_trial(variant, self.job)
        except Exception as error:
            self.errors[variant.name] = described(error)
        return self.trials.get(variant.name)

    def share(self, trial: Trial) -> float:
        return trial.memory.peak_bytes / self.trials[REFERENCE].memory.peak_bytes

    def row(self, name: str, seconds: dict[str, list[float]]) -> Row:
        about = {"model": self.name, "inner": self.inner, "variant": name, "goal": self.goals.get(name)}
        if name in self.errors:
            return Row(**about, error=self.errors[name])  # type: ignore[arg-type]
        trial, reference = self.trials[name], self.trials[REFERENCE]
        return Row(
            **about,  # type: ignore[arg-type]
            peak_share=self.share(trial),
            step_ratio=measure.paired_ratio(seconds[name], seconds[REFERENCE]),
            step_s=statistics.median(seconds[name]),
            grad_error=measure.rel_grad_error(trial.gradients, reference.gradients),
        )


def measure_model(name: str, inner: str, rounds: int) -> list[Row]:
    """PyTorch's budgets, then ours at the peaks that they reach."""
    torch.compiler.reset()
    module, args, kwargs = ZOO[name]()
    model = _Model(name, inner, Job(module, args, kwargs), {}, {}, {})
    if model.run(Variant(REFERENCE, inner)) is None:
        return [model.row(REFERENCE, {})]
    reached = [model.share(t) for share in SHARES if (t := model.run(torch_budget(share, inner))) is not None]
    # Rounded up: a share below what a cut of PyTorch's reaches would ask for less than it has.
    below = sorted({math.ceil(1000 * share) / 1000 for share in reached if share < 1 - NEAR}, reverse=True)
    for goal in [*below, LOWER * min([1.0, *below])]:
        options = {"budget": f"{100 * goal:.1f}%"}
        ours = {**options, "inner": inner} if inner != "inductor" else options
        model.run(Variant(f"actcomp-{100 * goal:.1f}", "actcomp", ours), goal)
    steps = {key: model.job.train_step(trial.compiled) for key, trial in model.trials.items()}
    seconds = measure.step_times(steps, rounds=rounds)
    return [model.row(key, seconds) for key in (*model.trials, *model.errors)]


def beaten(rows: Sequence[Row]) -> list[tuple[Row, Row | None]]:
    """Each of PyTorch's budgets below plain's peak, with the fastest of ours whose measured peak is no higher."""
    theirs = [row for row in rows if row.variant.startswith("budget") and (row.peak_share or 1.0) < 1 - NEAR]
    ours = [row for row in rows if row.variant.startswith("actcomp") and row.peak_share is not None]
    found = []
    for row in theirs:
        fit = [own for own in ours if (own.peak_share or 0.0) <= (row.peak_share or 0.0) + NEAR]
        found.append((row, min(fit, key=lambda own: own.step_ratio or 0.0, default=None)))
    return found


def table(name: str, rows: Sequence[Row]) -> Table:
    """One model's variants."""
    view = Table("variant", "asked", "peak", "step", "grad error", title=name, title_justify="left")
    for row in rows:
        if row.error or row.peak_share is None or row.step_ratio is None or row.grad_error is None:
            view.add_row(row.variant, "" if row.goal is None else f"{row.goal:.1%}", (row.error or "")[:90])
            continue
        goal = "" if row.goal is None else f"{row.goal:.1%}"
        view.add_row(row.variant, goal, f"{row.peak_share:.1%}", f"{row.step_ratio:.2f}x", f"{row.grad_error:.2g}")
    return view


def summary(rows: Sequence[Row]) -> str:
    """What the comparison comes to."""
    pairs = beaten(rows)
    good = sum(own is not None and (own.step_ratio or 0.0) <= NOISE * (row.step_ratio or 0.0) for row, own in pairs)
    lowest = min((row.peak_share or 1.0 for row in rows if row.variant.startswith("budget")), default=1.0)
    own = min((row.peak_share or 1.0 for row in rows if row.variant.startswith("actcomp")), default=1.0)
    return f"no slower at {good} of {len(pairs)} peaks; lowest peak: PyTorch {lowest:.1%}, ours {own:.1%}"


def main() -> int:
    """Run, print one table per model, append JSON lines; always 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--inner", default="inductor", choices=("inductor", "aot_eager"))
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps per variant")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    about, console = environment(), wide_console()
    warm_up(arguments.inner)
    with recompile_limit(64):
        for name in arguments.models.split(","):
            rows = measure_model(name, arguments.inner, arguments.rounds)
            console.print(table(name, rows), summary(rows))
            if arguments.json:
                append_rows(arguments.json, ({"bench": "equal_peak", **asdict(row), **about} for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
