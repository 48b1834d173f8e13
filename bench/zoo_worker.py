"""One zoo model under several variants, in a process of its own: `python -m bench.zoo_worker MODEL OUT …`.

Started by `bench.zoo`, so that one model's compile caches, memory and crashes reach no other.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench import measure
from bench.models.zoo import ZOO
from bench.record import append_rows, described
from bench.trial import Job, Trial, run_trial, warm_up
from bench.variants import REFERENCE, Variant, chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model under one variant; times in seconds. With `error` set, what could not be measured is None."""

    model: str
    variant: str
    inner: str
    bf16: bool
    error: str | None = None
    loss: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    total_peak_bytes: int | None = None
    gradient_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    grad_error: float | None = None
    """Whole-gradient relative error against the reference variant."""
    grad_equal: bool | None = None
    """Whether every gradient and the loss are bit-equal to the reference's."""
    step_s: float | None = None
    step_ratio: float | None = None
    compile_s: float | None = None


def measure_model(model: str, variants: Sequence[Variant], *, inner: str, bf16: bool, rounds: int) -> list[Row]:
    """Measure every variant; one that fails becomes a row with its error. The first variant is the reference."""
    module, args, kwargs = ZOO[model]()
    job = Job(module, args, kwargs, bf16)
    rows: dict[str, Row] = {}
    trials: dict[str, Trial] = {}
    for variant in variants:
        row = Row(model=model, variant=variant.name, inner=inner, bf16=bf16)
        try:
            trials[variant.name] = run_trial(variant, job)
        except Exception as error:
            rows[variant.name] = replace(row, error=described(error))
            continue
        rows[variant.name] = _filled(row, trials[variant.name], trials.get(REFERENCE))
    steps = {name: job.train_step(trial.compiled) for name, trial in trials.items()}
    seconds = measure.step_times(steps, rounds=rounds)
    return [_timed(row, trials, seconds) for row in rows.values()]


def _filled(row: Row, trial: Trial, reference: Trial | None) -> Row:
    filled = replace(
        row,
        loss=trial.loss,
        saved_bytes=trial.saved_bytes,
        peak_bytes=trial.memory.peak_bytes,
        total_peak_bytes=trial.memory.total_peak_bytes,
        gradient_bytes=trial.memory.gradient_bytes,
        predicted_peak_bytes=trial.predicted_peak_bytes,
    )
    if reference is None:
        return filled
    return replace(
        filled,
        grad_error=measure.rel_grad_error(trial.gradients, reference.gradients),
        grad_equal=trial.loss == reference.loss and measure.bit_equal(trial.gradients, reference.gradients),
    )


def _timed(row: Row, trials: dict[str, Trial], seconds: dict[str, list[float]]) -> Row:
    if row.variant not in seconds:
        return row
    step_s = statistics.median(seconds[row.variant])
    reference = seconds.get(REFERENCE)
    return replace(
        row,
        step_s=step_s,
        step_ratio=measure.paired_ratio(seconds[row.variant], reference) if reference else None,
        compile_s=trials[row.variant].first_step_s - min(seconds[row.variant]),
    )


def main() -> None:
    """Write one JSON line per variant to the file OUT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=list(ZOO))
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", required=True)
    parser.add_argument("--inner", required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    variants = chosen(arguments.variants, arguments.inner)
    warm_up(arguments.inner)
    rows = measure_model(arguments.model, variants, inner=arguments.inner, bf16=arguments.bf16, rounds=arguments.rounds)
    append_rows(arguments.out, map(asdict, rows))


if __name__ == "__main__":
    main()
