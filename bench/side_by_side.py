"""Variants trained in lock-step: each has its own copy of the model; bytes and compile times are measured before."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from bench import measure
from bench.record import megabytes, ratio
from bench.trial import Job, Trial, run_trial, warm_up
from bench.variants import Variant

COLUMNS = (
    "variant", "saved MB", "fewer", "peak MB", "lower", "predicted", "pred/meas", "step s", "compile s", "grad error",
)  # fmt: skip
TIMED_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Side:
    """One variant with its own copy of the model, compiled and measured on the first batch."""

    variant: Variant
    job: Job
    trial: Trial
    step_s: float
    """The fastest of a few steps, forward and backward."""
    compile_s: float
    """First step minus the fastest."""
    grad_error: float
    """On the first batch, against the reference variant, at equal weights."""

    def train_step(
        self, batch: tuple[Tensor, ...], optimizer: torch.optim.Optimizer, *, bf16: bool
    ) -> tuple[float, float]:
        """One step of training; returns the loss and the seconds of forward and backward, the optimizer left out."""
        optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []

        def forward_backward() -> None:
            device = batch[0].device.type
            with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
                losses.append(self.trial.compiled(*batch))
            losses[0].backward()  # type: ignore[no-untyped-call]

        seconds = measure.timed(forward_backward)
        optimizer.step()
        return float(losses[0].detach()), seconds

    def row(self) -> dict[str, Any]:
        """What was measured once, for a JSON line."""
        memory = self.trial.memory
        return {
            "variant": self.variant.name,
            "backend": self.variant.backend,
            "options": dict(self.variant.options),
            "saved_bytes": self.trial.saved_bytes,
            "peak_bytes": memory.peak_bytes,
            "total_peak_bytes": memory.total_peak_bytes,
            "gradient_bytes": memory.gradient_bytes,
            "predicted_peak_bytes": self.trial.predicted_peak_bytes,
            "step_s": self.step_s,
            "compile_s": self.compile_s,
            "grad_error": self.grad_error,
        }


def prepare(
    copies: Iterable[tuple[Variant, nn.Module]], batch: tuple[Tensor, ...], *, inner: str, bf16: bool
) -> list[Side]:
    """Compile and measure every variant on its own copy; the first is the reference."""
    warm_up(inner)
    jobs = [(variant, Job(module, batch, {}, bf16)) for variant, module in copies]
    trials = [run_trial(variant, job) for variant, job in jobs]
    steps = {variant.name: job.train_step(trial.compiled) for (variant, job), trial in zip(jobs, trials, strict=True)}
    fastest = {name: min(seconds) for name, seconds in measure.step_times(steps, rounds=TIMED_ROUNDS).items()}
    sides = []
    for (variant, job), trial in zip(jobs, trials, strict=True):
        error = measure.rel_grad_error(trial.gradients, trials[0].gradients)
        step_s = fastest[variant.name]
        sides.append(Side(variant, job, trial, step_s, trial.first_step_s - step_s, error))
    return sides


def summary(sides: list[Side], step_ratios: dict[str, float]) -> Table:
    """One line per side; `fewer` and `lower` divide the reference by the side, times divide the other way."""
    reference = sides[0]
    view = Table(*COLUMNS)
    for side in sides:
        trial = side.trial
        view.add_row(
            side.variant.name,
            megabytes(trial.saved_bytes),
            ratio(reference.trial.saved_bytes, trial.saved_bytes),
            megabytes(trial.memory.peak_bytes),
            ratio(reference.trial.memory.peak_bytes, trial.memory.peak_bytes),
            megabytes(trial.predicted_peak_bytes),
            ratio(trial.predicted_peak_bytes, trial.memory.peak_bytes, 3),
            f"{side.step_s:.2f} {ratio(step_ratios[side.variant.name], 1)}",
            f"{side.compile_s:.1f} {ratio(side.compile_s, reference.compile_s)}",
            f"{side.grad_error:.2g}",
        )
    return view
