"""A verification as a table: how far each gradient is from the uncompressed step's."""

import math
from typing import TYPE_CHECKING

from rich.console import Console

from fxcompress.report.table import add_row, make_table, print_line
from fxcompress.report.text import human_bytes, ratio

if TYPE_CHECKING:
    from fxcompress.verify import TensorError, Verification

SHOWN = 10
"""Gradients shown without --verbose: those with the largest errors."""


def print_verification(result: "Verification", console: Console, *, verbose: bool = False) -> None:
    """Print what `verify` found; all tensors if verbose, else the worst gradients."""
    gradients = sorted(result.gradients, key=lambda error: (error.negligible, -error.rel_error))
    shown = gradients if verbose else gradients[:SHOWN]
    _print_errors("gradient of", shown, console)
    if len(gradients) > len(shown):
        print_line(console, f"  … and {len(gradients) - len(shown)} gradients with smaller errors")
    if verbose:
        _print_errors("output or buffer", [*result.outputs, *result.buffers], console)
    if result.stored:
        _print_stored(result, console, verbose=verbose)
    before, after = result.saved_bytes_before, result.saved_bytes_after
    saved = f"{human_bytes(before)} → {human_bytes(after)} ({ratio(before, after)})"
    predicted = "" if result.predicted_error is None else f"predicted {result.predicted_error:.3g}, "
    lines = {
        "whole gradient": f"relative error {result.gradient_rel_error:.3g}, {predicted}allowed {result.max_error:g}",
        "loss": f"{result.loss_plain:.9g} plain, {result.loss:.9g} compressed, inner compiler {result.inner}",
        "saved": f"{saved}, {result.compressed} tensors encoded",
    }
    if result.culprit:
        lines["first too much"] = result.culprit
    for label, text in lines.items():
        print_line(console, f"  {label:<14}  {text}")


def _print_stored(result: "Verification", console: Console, *, verbose: bool) -> None:
    """Tensors alone; their squares add up to the whole, as far as their errors are independent."""
    shown = result.stored if verbose else result.stored[:SHOWN]
    table = make_table("stored tensor alone", "layer", "representation", "predicted>", "measured>")
    for error in shown:
        cells = (error.name, error.layer, error.representation)
        add_row(table, *cells, f"{error.predicted:.3g}", f"{error.measured:.3g}")
    if len(result.stored) > 1:
        totals = (math.hypot(*(e.predicted for e in result.stored)), math.hypot(*(e.measured for e in result.stored)))
        add_row(table, f"all {len(result.stored)}", "", "", *(f"{total:.3g}" for total in totals))
    console.print(table)
    if len(result.stored) > len(shown):
        print_line(console, f"  … and {len(result.stored) - len(shown)} tensors with smaller errors")


def _print_errors(head: str, errors: "list[TensorError]", console: Console) -> None:
    table = make_table(head, "relative error>", "largest absolute error>", "norm>")
    for error in errors:
        relative = "about zero" if error.negligible else f"{error.rel_error:.3g}"
        add_row(table, error.name, relative, f"{error.max_abs_error:.3g}", f"{error.norm:.3g}")
    console.print(table)
