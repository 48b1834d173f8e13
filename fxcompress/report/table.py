"""Plans and their differences as tables for a terminal.

`print_plan(plan, console, …)` and `print_diff(difference, console, …)`; `make_console` picks a width that does not cut
lines when the output is not a terminal. Colours follow the terminal and NO_COLOR, which rich looks after.
"""

import os
from collections.abc import Sequence
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fxcompress.facts import CALLER_HELD
from fxcompress.plan import KEEP, Fit, GraphPlan, Plan
from fxcompress.plan_diff import Change, PlanDiff
from fxcompress.report.fold import Row, fold
from fxcompress.report.text import (
    accuracy_text,
    human_bytes,
    logits,
    printable,
    ratio,
    representation,
    short_op,
    signed_bytes,
)

PLAIN_WIDTH = 400
"""Columns where the output is no terminal and COLUMNS is not set: one line per row, as `grep` likes it."""
SMALL = 0.01
"""Kept rows below this share of all bytes are summed up in one line, unless verbose."""


def make_console(file: IO[str]) -> Console:
    """Return a console on `file`."""
    fixed = not file.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return Console(file=file, width=PLAIN_WIDTH if fixed else None, highlight=False, soft_wrap=False)


def print_plan(plan: Plan, console: Console, *, verbose: bool = False) -> None:
    """Print what each graph saves for backward, how it is represented, and the totals.

    Args:
        plan: the plan.
        console: where to.
        verbose: also the reason of every decision, and the tensors that the caller holds anyway.
    """
    for number, graph in enumerate(plan.graphs):
        if len(plan.graphs) > 1:
            title = f"graph {number + 1} of {len(plan.graphs)}, fingerprint {graph.fingerprint[:12]}"
            print_line(console, title, "bold")
        _print_graph(graph, console, verbose=verbose)
    if len(plan.graphs) != 1:
        before = sum(graph.saved_bytes_before for graph in plan.graphs)
        after = sum(graph.saved_bytes_after for graph in plan.graphs)
        plain = sum(graph.plain_saved_bytes for graph in plan.graphs)
        print_line(console, f"all {len(plan.graphs)} graphs", "bold")
        _print_totals(console, [_saved_line(before, after, plain)])


def print_diff(difference: PlanDiff, console: Console, *, verbose: bool = False) -> None:
    """Print which tensors two plans treat differently, byte changes by layer, and the first difference."""
    if difference.equal:
        print_line(console, "the plans are equal")
        return
    print_line(console, f"first difference: {difference.first}", "bold")
    for line in difference.graphs:
        print_line(console, line)
    if difference.changes:
        console.print(_change_table(difference.changes, verbose=verbose))
    if difference.layers:
        table = make_table("layer", "bytes first>", "bytes second>", "change>")
        for layer in difference.layers:
            first, second = layer.nbytes_before, layer.nbytes_after
            add_row(table, layer.layer, human_bytes(first), human_bytes(second), signed_bytes(second - first))
        console.print(table)
    before, after = difference.saved_bytes_before, difference.saved_bytes_after
    change = signed_bytes(after - before)
    print_line(console, f"saved for backward: {human_bytes(before)} → {human_bytes(after)} ({change})")


def _print_graph(graph: GraphPlan, console: Console, *, verbose: bool) -> None:
    rows = fold(graph.decisions)
    least = 0 if verbose else SMALL * sum(row.nbytes_before for row in rows)
    shown = [row for row in rows if row.first.codec != KEEP or row.nbytes_before >= least]
    small = [row for row in rows if row.first.codec == KEEP and row.nbytes_before < least]
    if shown:
        console.print(_plan_table(shown, verbose=verbose, errors=bool(graph.accuracies)))
    held = [decision for decision in graph.decisions if decision.tensor.refusal in CALLER_HELD]
    lines = [_saved_line(graph.saved_bytes_before, graph.saved_bytes_after, graph.plain_saved_bytes)]
    if small:
        size = human_bytes(sum(row.nbytes_before for row in small))
        lines.append(("kept besides", f"{sum(row.count for row in small)} small tensors ({size}), listed with -v"))
    if held:
        size = human_bytes(sum(decision.tensor.nbytes for decision in held))
        lines.append(
            ("not counted", f"{len(held)} tensors ({size}) that the caller holds anyway: parameters, inputs, outputs")
        )
    before, after = graph.peak_before, graph.peak_after
    lines.append(
        (
            "predicted peak",
            f"{human_bytes(before.peak_bytes)} → {human_bytes(after.peak_bytes)}"
            f" ({ratio(before.peak_bytes, after.peak_bytes)}), at {after.at}; without parameters",
        )
    )
    lines.extend(_fit_line(fit) for fit in graph.fits)
    lines.extend(("gradient error", accuracy_text(accuracy)) for accuracy in graph.accuracies)
    if graph.loss.shape:
        lines.append(("logits", logits(graph.loss)))
    _print_totals(console, lines)
    if verbose:
        for decision in held:
            print_line(console, f"  held by the caller: {decision.tensor.name}: {decision.tensor.refusal}")


def _saved_line(before: int, after: int, plain: int) -> tuple[str, str]:
    text = f"{human_bytes(before)} → {human_bytes(after)} ({ratio(before, after)})"
    return "saved for backward", f"{text}; PyTorch's own cut saves {human_bytes(plain)}, {ratio(plain, after)} as much"


def _fit_line(fit: Fit) -> tuple[str, str]:
    modelled = f"recomputing {1e3 * fit.recompute_s:.3g} ms, coding {1e3 * fit.code_s:.3g} ms"
    return (
        "budget",
        f"{human_bytes(fit.limit_bytes)} of PyTorch's own {human_bytes(fit.plain_peak_bytes)}; lowest peak found "
        f"{human_bytes(fit.lowest_peak_bytes)}; cut: {fit.cut}; modelled: {modelled} (no choice for this cut that "
        f"fits below {1e3 * fit.bound_s:.3g} ms)",
    )


def _print_totals(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print_line(console, f"  {label:<{width}}  {text}")
    print_line(console, "")


def _plan_table(rows: Sequence[Row], *, verbose: bool, errors: bool) -> Table:
    heads = ["tensor", "layer", "source", "op", "shape", "dtype", "bytes>", "backward consumers", "need"]
    further = [*(["gradient error>"] if errors else []), *(["reason"] if verbose else [])]
    table = make_table(*heads, "representation", "after>", *further)
    for row in rows:
        decision, tensor = row.first, row.first.tensor
        cells = [
            row.name,
            row.layer,
            tensor.source or "–",
            short_op(tensor.op),
            "x".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
            human_bytes(row.nbytes_before),
            ", ".join(map(short_op, tensor.consumers)) or "–",
            tensor.need,
            representation(decision),
            human_bytes(row.nbytes_after),
        ]
        cells += [f"{row.predicted_error:.2g}" if row.predicted_error else "–"] if errors else []
        add_row(table, *cells, *([decision.reason] if verbose else []), style="dim" if decision.codec == KEEP else "")
    return table


def _change_table(changes: Sequence[Change], *, verbose: bool) -> Table:
    table = make_table("tensor", "layer", "shape", "first", "second", "change>", *(["fields"] if verbose else []))
    for change in changes:
        decision = change.before or change.after
        assert decision is not None
        sides = [representation(side) if side else "not saved" for side in (change.before, change.after)]
        sizes = [side.nbytes if side else 0 for side in (change.before, change.after)]
        shape = "x".join(map(str, decision.tensor.shape))
        cells = [decision.tensor.name, decision.tensor.layer, shape, *sides, signed_bytes(sizes[1] - sizes[0])]
        add_row(table, *cells, *(["; ".join(change.fields)] if verbose else []))
    return table


def make_table(*heads: str) -> Table:
    """Return an empty table; a head that ends in `>` is a column of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in heads:
        number = head.endswith(">")
        table.add_column(head.rstrip(">"), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """Add cells as plain text: no markup, no control characters."""
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line, however long."""
    console.print(Text(printable(text), style=style), soft_wrap=True)
