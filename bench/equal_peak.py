"""Our budgets against torch's `activation_memory_budget` at equal measured peak: `python -m bench.equal_peak`.

Per model and per memory budget of torch, one step is compiled by torch and its peak measured; ours then gets that peak
as its budget, and both are timed in one process, step by step, with lossy codecs and without.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from bench import measure
from bench.models.zoo import ZOO
from bench.record import append_rows, described, environment, megabytes, ratio, wide_console
from bench.trial import Job, Trial, run_trial, warm_up
from bench.variants import BUDGETS, REFERENCE, Variant, variants

COLUMNS = ("torch's budget", "codecs", "torch's peak", "its step", "our peak", "our step / its")
MODELS = "gpt2,vit,resnet,llama,bert,cnn,swin,t5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model at one of torch's budgets. `step_ratio` is our step time over torch's at no higher a peak."""

    model: str
    inner: str
    torch_budget: float
    lossy: bool
    plain_peak_bytes: int
    torch_peak_bytes: int
    torch_ratio: float
    """Torch's step time over plain's."""
    peak_bytes: int | None = None
    step_ratio: float | None = None
    error: str | None = None


def compare(model: str, inner: str, rounds: int) -> list[Row]:
    """Measure one model at every budget."""
    job = Job(*ZOO[model]())
    known = variants(inner)
    plain = run_trial(known[REFERENCE], job)
    rows = []
    for budget in BUDGETS:
        theirs = run_trial(known[f"budget-{budget}"], job)
        ours = {lossy: _ours(job, inner, theirs.memory.peak_bytes, lossy) for lossy in (True, False)}
        trials = {"plain": plain, "torch": theirs, **{str(k): v for k, v in ours.items() if isinstance(v, Trial)}}
        seconds = measure.step_times({name: job.train_step(t.compiled) for name, t in trials.items()}, rounds=rounds)
        for lossy, trial in ours.items():
            done = isinstance(trial, Trial)
            rows.append(
                Row(
                    model=model,
                    inner=inner,
                    torch_budget=budget,
                    lossy=lossy,
                    plain_peak_bytes=plain.memory.peak_bytes,
                    torch_peak_bytes=theirs.memory.peak_bytes,
                    torch_ratio=measure.paired_ratio(seconds["torch"], seconds["plain"]),
                    peak_bytes=trial.memory.peak_bytes if isinstance(trial, Trial) else None,
                    step_ratio=measure.paired_ratio(seconds[str(lossy)], seconds["torch"]) if done else None,
                    error=None if isinstance(trial, Trial) else trial,
                )
            )
    return rows


def _ours(job: Job, inner: str, budget_bytes: int, lossy: bool) -> Trial | str:
    """Ours under a budget, or why there is no plan."""
    options = {"budget": budget_bytes, "lossy": lossy, **({} if inner == "inductor" else {"inner": inner})}
    torch._dynamo.reset()
    try:
        return run_trial(Variant("ours", "actcomp", options), job)
    except Exception as error:
        return described(error)


def table(rows: Sequence[Row]) -> Table:
    """One model."""
    view = Table(
        "torch's budget", "codecs", "torch's peak", "its step", "our peak", "our step / its", title=rows[0].model
    )
    for row in rows:
        view.add_row(
            f"{row.torch_budget:g}",
            "lossy" if row.lossy else "exact",
            f"{megabytes(row.torch_peak_bytes)} ({row.torch_peak_bytes / row.plain_peak_bytes:.0%})",
            ratio(row.torch_ratio, 1),
            "none" if row.peak_bytes is None else megabytes(row.peak_bytes),
            "–" if row.step_ratio is None else ratio(row.step_ratio, 1),
        )
    return view


def main() -> int:
    """Run, print one table per model, append JSON lines; always 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--inner", default="aot_eager", choices=("inductor", "aot_eager"))
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps each")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warm_up(arguments.inner)
    console = wide_console()
    for model in arguments.models.split(","):
        rows = compare(model, arguments.inner, arguments.rounds)
        console.print(table(rows))
        if arguments.json:
            about = {**environment(), "threads": torch.get_num_threads()}
            append_rows(arguments.json, ({"bench": "equal_peak", **asdict(row), **about} for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
