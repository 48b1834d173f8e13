"""Plans under budgets with what proves them, on fake tensors: `python -m bench.certificates`.

Per zoo model, inner compiler and budget: the predicted peak, the modelled seconds of encoding, and the bound that no
choice of representations for the same cut can beat if it is to keep the peak that was aimed at, or the one that was
reached where that was out of reach.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from bench.models.zoo import ZOO
from bench.record import append_rows, described, environment, wide_console
from fxcompress.options import Options
from fxcompress.trace import explain

MODELS = "gpt2,vit,resnet,llama,bert,cnn,swin,t5"
BUDGETS = "75,50,35"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan; seconds are modelled. With `error` set there is none."""

    model: str
    inner: str
    budget: int
    cut: str | None = None
    peak_share: float | None = None
    recompute_s: float | None = None
    code_s: float | None = None
    bound_s: float | None = None
    error: str | None = None

    @property
    def gap(self) -> float | None:
        """By which share the cost lies above the bound."""
        if self.code_s is None or self.bound_s is None:
            return None
        if not self.bound_s:
            return float("inf") if self.code_s else 0.0
        return self.code_s / self.bound_s - 1


def plans(model: str, inner: str, budgets: list[int]) -> Iterator[Row]:
    """One row per budget."""
    for budget in budgets:
        try:
            (graph,) = explain(ZOO[model], options=Options(inner=inner, budget=f"{budget}%")).graphs
        except Exception as error:
            yield Row(model=model, inner=inner, budget=budget, error=described(error))
            continue
        (fit,) = graph.fits
        yield Row(
            model=model,
            inner=inner,
            budget=budget,
            cut=fit.cut,
            peak_share=graph.peak_after.peak_bytes / fit.plain_peak_bytes,
            recompute_s=fit.recompute_s,
            code_s=fit.code_s,
            bound_s=fit.bound_s,
        )


def main() -> int:
    """Run, print a table, append JSON lines; always 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--inner", default="aot_eager,inductor", help="comma-separated")
    parser.add_argument("--budgets", default=BUDGETS, help="percent of PyTorch's own peak, comma-separated, falling")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    budgets = [int(text) for text in arguments.budgets.split(",")]
    view = Table("model", "inner", "budget", "peak", "recompute ms", "code ms", "above bound", "cut")
    for model in arguments.models.split(","):
        for inner in arguments.inner.split(","):
            rows = list(plans(model, inner, budgets))
            for row in rows:
                view.add_row(model, inner, f"{row.budget} %", *_cells(row))
            if arguments.json:
                append_rows(arguments.json, ({"bench": "certificates", **asdict(row), **environment()} for row in rows))
    wide_console().print(view)
    return 0


def _cells(row: Row) -> tuple[str, ...]:
    if row.peak_share is None or row.recompute_s is None or row.code_s is None:
        return "none", "", "", "", (row.error or "")[:60]
    milliseconds = (f"{1e3 * seconds:.3g}" for seconds in (row.recompute_s, row.code_s))
    return f"{row.peak_share:.1%}", *milliseconds, f"{row.gap or 0.0:.2%}", row.cut or ""


if __name__ == "__main__":
    sys.exit(main())
