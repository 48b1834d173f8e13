"""Rows of `bench.sources` as Markdown tables, one or two per task and setting."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.record import megabytes, ratio
from bench.source_variants import match_of
from bench.variants import REFERENCE

COLUMNS = (
    "variant", "bits/element", "saved MB", "fewer", "peak MB", "lower", "gradient error", "bias", "step", "quality",
    "minus plain (95 %)",
)  # fmt: skip
PAIRED = ("saved MB", "peak MB", "gradient error", "minus plain (95 %)")
SETTING = ("task", "inner", "steps", "seeds", "commit")


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """One table per task, inner compiler, steps, seeds and commit, in the order of the rows, and one of ours beside
    each preset whose error it has."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in SETTING), []).append(row)
    return "\n\n".join(text for group in groups.values() for text in (_table(group), _pairs(group)) if text)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = rows[0]
    title = f"{head['task']}: {head['steps']} steps x {head['seeds']} seeds, {head['inner']}, {head['unit']}"
    first = next((row for row in rows if row["variant"] == REFERENCE), None)
    lines = [title, "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    return "\n".join([*lines, *(_line(_cells(row, first)) for row in rows)])


def _pairs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Presets beside ours at no more error; empty where no row is such."""
    known = {row["variant"]: row for row in rows}
    pairs = [(known[name], row) for row in rows if (name := _matched(row)) in known]
    if not pairs:
        return ""
    head = ["preset", *PAIRED, *(f"ours: {name}" for name in PAIRED)]
    lines = [_line(head), _line(["---"] * len(head))]
    return "\n".join([*lines, *(_line([preset["variant"], *_four(preset), *_four(ours)]) for preset, ours in pairs)])


def _matched(row: Mapping[str, Any]) -> str | None:
    match = match_of(str(row["variant"]))
    return match.rest if match is not None else None


def _four(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['saved_bytes'] / 1e6:.3f}", megabytes(row["peak_bytes"]), f"{row['grad_error']:.3f}", _gap(row)]


def _gap(row: Mapping[str, Any]) -> str:
    return f"{row['difference']:+.4f} ± {row['half_width'] or 0:.4f}"


def _cells(row: Mapping[str, Any], first: Mapping[str, Any] | None) -> list[str]:
    bits = row["bits_per_element"]
    before = first or {"saved_bytes": None, "peak_bytes": None}
    return [
        str(row["variant"]),
        "" if bits is None else f"{bits:.2f}",
        megabytes(row["saved_bytes"]),
        ratio(before["saved_bytes"], row["saved_bytes"], 1),
        megabytes(row["peak_bytes"]),
        ratio(before["peak_bytes"], row["peak_bytes"]),
        f"{row['grad_error']:.3f}",
        f"{row['bias']:.3f}",
        ratio(row["step_ratio"], 1, 1),
        f"{statistics.fmean(row['quality']):.4f}",
        "" if row["variant"] == REFERENCE else _gap(row),
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
