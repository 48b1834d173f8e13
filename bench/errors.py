"""Predicted and measured gradient errors under `max_error`: `python -m bench.errors [--models a,b] [--limits 0.05]`.

Every model of the zoo trains one step for calibration and one under the plan that follows, as a user's would. The
gradient of the second is compared with that of plain PyTorch through the same inner compiler, at the same seed.
"""

import argparse
import functools
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench import measure
from bench.models.zoo import ZOO
from bench.record import append_rows, described, environment, ratio, wide_console
from bench.trial import Job
from fxcompress.backend import actcomp
from fxcompress.ledger import reports
from fxcompress.plan import GraphPlan

LIMITS = (0.02, 0.05, 0.1)
COLUMNS = (
    "model",
    "limit",
    "predicted",
    "measured",
    "pred/meas",
    "meas/limit",
    "fewer bytes",
    "above bound",
    "1/2/4/8/kept",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model under one limit; errors are relative to the whole gradient's norm. With `error`, the rest is None."""

    model: str
    limit: float
    inner: str
    bf16: bool
    error: str | None = None
    predicted: float | None = None
    measured: float | None = None
    saved_bytes_before: int | None = None
    saved_bytes_after: int | None = None
    bound_bytes: float | None = None
    """No plan within the limit stores the storages that it may choose for in fewer bytes; `chosen_bytes` is what this
    one does."""
    chosen_bytes: float | None = None
    widths: tuple[int, ...] | None = None
    """Storages at 1, 2, 4 and 8 bits, and kept for the sake of the limit."""
    calibration_s: float | None = None
    """Of the first step: tracing, calibrating."""
    second_s: float | None = None
    """Of the second: tracing and planning again."""

    @property
    def held(self) -> bool:
        """Whether the prediction is within a factor of 2 and the limit is not exceeded by more than 10 %."""
        if self.predicted is None or self.measured is None:
            return False
        near = self.predicted <= 2 * self.measured and self.measured <= 2 * self.predicted
        return (near or self.predicted == self.measured) and self.measured <= 1.1 * self.limit


def measure_model(name: str, limit: float, *, inner: str, bf16: bool) -> Row:
    """Calibrate, plan and compare one model."""
    row = Row(model=name, limit=limit, inner=inner, bf16=bf16)
    module, args, kwargs = ZOO[name]()
    job = Job(module, args, kwargs, bf16)
    torch.compiler.reset()
    plain = job.gradient_step(torch.compile(module, backend=inner))()
    torch.compiler.reset()
    before = len(reports())
    backend: Any = functools.partial(actcomp, options={"inner": inner, "max_error": limit})
    step = job.gradient_step(torch.compile(module, backend=backend))
    results: list[Any] = []
    calibration_s, second_s = (measure.timed(lambda: results.append(step())) for _ in range(2))
    ours = results[-1]
    plans = reports()[before:]
    return _filled(replace(row, calibration_s=calibration_s, second_s=second_s), plans, plain, ours)


def _filled(row: Row, plans: list[GraphPlan], plain: Any, ours: Any) -> Row:
    names = [str(i) for i in range(len(plain))]
    error = measure.rel_grad_error(dict(zip(names, ours, strict=True)), dict(zip(names, plain, strict=True)))
    (plan,) = plans
    (accuracy,) = plan.accuracies
    bits = [dict(d.params).get("bits") for d in plan.decisions if d.codec == "affine"]
    kept = sum(d.reason.startswith("kept under max_error") for d in plan.decisions)
    return replace(
        row,
        predicted=accuracy.predicted,
        measured=error,
        saved_bytes_before=plan.plain_saved_bytes,
        saved_bytes_after=plan.saved_bytes_after,
        bound_bytes=accuracy.bound,
        chosen_bytes=accuracy.cost,
        widths=(*(bits.count(width) for width in (1, 2, 4, 8)), kept),
    )


def main() -> int:
    """Run, print a table, append JSON lines; 1 if a row misses the bar or carries an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="all", help=f"comma-separated: {', '.join(ZOO)}")
    parser.add_argument("--limits", default=",".join(map(str, LIMITS)), help="comma-separated")
    parser.add_argument("--inner", default="aot_eager", choices=("inductor", "aot_eager"))
    parser.add_argument("--bf16", action="store_true", help="run the forward under bf16 autocast")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    about = environment()
    rows = []
    for name in list(ZOO) if arguments.models == "all" else arguments.models.split(","):
        for limit in map(float, arguments.limits.split(",")):
            try:
                row = measure_model(name, limit, inner=arguments.inner, bf16=arguments.bf16)
            except Exception as error:
                row = Row(model=name, limit=limit, inner=arguments.inner, bf16=arguments.bf16, error=described(error))
            rows.append(row)
            print(f"{name} {limit:g}: {row.error or 'done'}", file=sys.stderr)
            if arguments.json:
                append_rows(arguments.json, [{"bench": "errors", **asdict(row), "held": row.held, **about}])
    wide_console().print(table(rows))
    return int(not all(row.held for row in rows))


def table(rows: list[Row]) -> Table:
    """All rows; those that miss the bar are marked."""
    view = Table(*COLUMNS)
    for row in rows:
        if row.error or row.predicted is None or row.measured is None:
            view.add_row(row.model, f"{row.limit:g}", "failed")
            continue
        view.add_row(
            row.model + ("" if row.held else " (missed)"),
            f"{row.limit:g}",
            f"{row.predicted:.4f}",
            f"{row.measured:.4f}",
            ratio(row.predicted, row.measured),
            ratio(row.measured, row.limit),
            ratio(row.saved_bytes_before, row.saved_bytes_after),
            ratio(row.chosen_bytes, row.bound_bytes, 4),
            "/".join(map(str, row.widths or ())),
        )
    return view


if __name__ == "__main__":
    sys.exit(main())
