"""The largest batches as a table: what each variant needs, part by part."""

from typing import TYPE_CHECKING

from rich.console import Console

from fxcompress.report.table import add_row, make_table, print_line
from fxcompress.report.text import human_bytes

if TYPE_CHECKING:
    from fxcompress.maxbatch import Answer, MaxBatch

TITLES = {"plain": "PyTorch's own cut", "actcomp": "actcomp", "budget": "actcomp, memory as budget"}
PARTS = {
    "parameters, buffers": "parameter_bytes",
    "gradients": "gradient_bytes",
    "optimizer state": "optimizer_bytes",
    "inputs": "input_bytes",
    "peak (predicted)": "peak_bytes",
    "together": "total_bytes",
}


def print_max_batch(result: "MaxBatch", console: Console) -> None:
    """Print one column per variant and one line per part."""
    answers = result.answers
    table = make_table(f"{human_bytes(result.memory_bytes)}", *(f"{TITLES[answer.variant]}>" for answer in answers))
    add_row(table, "largest batch", *map(_batch, answers), style="bold")
    for label, name in PARTS.items():
        add_row(table, f"  {label}", *(_part(answer, name) for answer in answers))
    add_row(table, "one more needs", *map(_next, answers))
    add_row(table, "traces", *(str(answer.traces) for answer in answers))
    console.print(table)
    print_line(console, f"  varied: {result.varied}; optimizer: {result.optimizer}")
    print_line(
        console, "  not counted: the optimizer's working memory, fragmentation, the device's context; leave room"
    )
    for variant, reason in result.skipped:
        print_line(console, f"  {TITLES[variant]}: not tried, {reason}")


def _batch(answer: "Answer") -> str:
    if answer.largest is None:
        return "none"
    return f"{answer.largest.batch}{'' if answer.next else ' or more'}"


def _part(answer: "Answer", name: str) -> str:
    probe = answer.largest or answer.next
    return human_bytes(getattr(probe.footprint, name)) if probe else "–"


def _next(answer: "Answer") -> str:
    return human_bytes(answer.next.footprint.total_bytes) if answer.next else "–"
