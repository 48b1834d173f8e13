"""What storing single tensors does to the gradient, measured on the step that `verify` compares."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxcompress import plan_io
from fxcompress.calibration import calibrate
from fxcompress.error_table import ErrorTable
from fxcompress.inputs import InputSpec
from fxcompress.ledger import make_plan
from fxcompress.options import Options
from fxcompress.plan import Decision, GraphPlan
from fxcompress.probe import coefficients, probing_backend
from fxcompress.report.text import representation
from fxcompress.seeded_step import loss_of, outputs_of, seeded
from fxcompress.sensitivity import step_quietly


@dataclass(frozen=True, slots=True)
class StoredError:
    """What storing one tensor alone does to the whole gradient: ‖Δ‖/‖gradient‖, as predicted and as measured."""

    name: str
    layer: str
    representation: str
    predicted: float
    measured: float


def calibrated_step(
    model_factory: Callable[[], object], inputs: Sequence[InputSpec], options: Options, path: str | os.PathLike[str]
) -> ErrorTable:
    """Calibrate on the step that `verify` compares, and write the table; arguments as there.

    Raises:
        BudgetError, FxcompressError: as `calibration.calibrate`.
    """
    with seeded(model_factory, inputs, options) as (module, args, kwargs):

        def run(compiled: Callable[..., object]) -> torch.Tensor:
            return loss_of(outputs_of(compiled(*args, **kwargs)), options.seed)

        return calibrate(module, run, path, options=options)


def stored_errors(
    model_factory: Callable[[], object],
    inputs: Sequence[InputSpec],
    options: Options,
    plans: Sequence[GraphPlan],
    folder: Path,
) -> tuple[StoredError, ...]:
    """Every tensor in affine codes alone, by repeating the backward pass on exact values."""
    path = folder / "plan.json"
    plan_io.save(path, make_plan(plans, options))
    found: list[tuple[Decision, float]] = []
    squared: list[float] = []

    def measure(graph: int, bw: fx.GraphModule, values: Sequence[Any]) -> None:
        with torch.no_grad():
            measured, norm = coefficients(bw, plans[graph].decisions, values, 1, {})
        found.extend(
            (decision, math.sqrt(c) / (2 ** int(dict(decision.params)["bits"]) - 1)) for decision, c in measured
        )
        squared.append(norm)

    replayed = Options(inner=options.inner, plan=str(path))
    with seeded(model_factory, inputs, options) as (module, args, kwargs):
        step_quietly(
            module,
            lambda compiled: loss_of(outputs_of(compiled(*args, **kwargs)), options.seed),
            probing_backend(replayed, measure),
        )
    norm = math.sqrt(sum(squared))
    errors = [
        StoredError(d.tensor.name, d.tensor.layer, representation(d), d.predicted_error, distance / norm)
        for d, distance in found
    ]
    return tuple(sorted(errors, key=lambda error: -error.measured))
