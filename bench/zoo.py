"""Models of many families × ways to compile: `python -m bench.zoo [--models a,b] [--variants x,y]`.

Each model runs in a process of its own. A variant that fails, or a model that crashes or takes too long, is a row with
the error. bench/README.md defines the columns.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.models.zoo import ZOO
from bench.record import append_rows, environment, megabytes, ratio, wide_console
from bench.variants import REFERENCE, chosen
from bench.zoo_worker import Row

COLUMNS = ("variant", "saved MB", "fewer", "peak MB", "lower", "predicted", "grad error", "equal", "step", "compile")


def main() -> int:
    """Run, print one table per model as it comes, append JSON lines; 1 if any row carries an error."""
    arguments = _arguments()
    names = list(ZOO) if arguments.models == "all" else arguments.models.split(",")
    if unknown := [name for name in names if name not in ZOO]:
        raise SystemExit(f"unknown model {unknown[0]!r}; known: {', '.join(ZOO)}")
    variants = [variant.name for variant in chosen(arguments.variants, arguments.inner)]
    about = environment()
    if arguments.threads:
        about["threads"] = arguments.threads
    console = wide_console()
    failed = False
    for name in names:
        rows = run_model(name, variants, arguments)
        console.print(table(name, rows))
        for row in rows:
            if row.error:
                failed = True
                console.print(f"  {row.variant}: {row.error}", markup=False)
        if arguments.json:
            append_rows(arguments.json, ({"bench": "zoo", **asdict(row), **about} for row in rows))
    return int(failed)


def run_model(name: str, variants: Sequence[str], arguments: argparse.Namespace) -> list[Row]:
    """Measure one model in a subprocess; if it leaves no rows, every variant's row says why."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "bench.zoo_worker", name, str(out), "--variants", ",".join(variants)]
        command += ["--inner", arguments.inner, "--rounds", str(arguments.rounds)]
        command += ["--bf16"] if arguments.bf16 else []
        command += ["--threads", str(arguments.threads)] if arguments.threads else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout)
            error = f"worker ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        except subprocess.TimeoutExpired:
            error = f"took longer than {arguments.timeout} s"
        if out.exists():
            lines: list[dict[str, Any]] = [json.loads(line) for line in out.read_text().splitlines()]
            return [Row(**line) for line in lines]
    return [Row(model=name, variant=v, inner=arguments.inner, bf16=arguments.bf16, error=error) for v in variants]


def table(name: str, rows: Sequence[Row]) -> Table:
    """One model's variants; `fewer` and `lower` divide the reference by the variant, times divide the other way."""
    reference = next(row for row in rows if row.variant == REFERENCE)
    view = Table(*COLUMNS, title=name, title_justify="left")
    for row in rows:
        if row.error:
            view.add_row(row.variant, "failed")
            continue
        view.add_row(
            row.variant,
            megabytes(row.saved_bytes),
            ratio(reference.saved_bytes, row.saved_bytes),
            megabytes(row.peak_bytes),
            ratio(reference.peak_bytes, row.peak_bytes),
            ratio(row.predicted_peak_bytes, row.peak_bytes, 3),
            "–" if row.grad_error is None else f"{row.grad_error:.2g}",
            "–" if row.grad_equal is None else str(row.grad_equal),
            ratio(row.step_ratio, 1),
            ratio(row.compile_s, reference.compile_s),
        )
    return view


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="all", help=f"comma-separated: {', '.join(ZOO)}")
    parser.add_argument("--variants", default="plain,actcomp", help="comma-separated, or all")
    parser.add_argument("--inner", default="inductor", choices=("inductor", "aot_eager"))
    parser.add_argument("--bf16", action="store_true", help="run the forward under bf16 autocast")
    parser.add_argument(
        "--threads", type=int, help="of torch; with 1, scattered sums add in one order, so that bits can be compared"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed steps per variant")
    parser.add_argument("--timeout", type=float, default=900, help="seconds per model")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
