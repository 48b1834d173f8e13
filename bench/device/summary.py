"""The table at the end, in plain text: the machine that it is printed on has nothing but torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.device.rows import Row
from bench.device.section import Scale, Section

Rows = Mapping[tuple[str, str], Row]
_WIDEST = 90


def print_summary(sections: Sequence[Section], scale: Scale, rows: Rows) -> bool:
    """One table per section; whether every case is answered and none is not ok."""
    good = True
    for section in sections:
        names = list(section.cases(scale))
        found = {name: rows[section.name, name] for name in names if (section.name, name) in rows}
        missing = len(names) - len(found)
        failed = [name for name, row in found.items() if "error" in row or row.get("ok") is False]
        good &= not failed and not missing
        print(f"\n{section.title}: {_counts(found, failed, missing)}")
        shown = {name: row for name, row in found.items() if _is_shown(section, name, row, failed)}
        lines = [_cells(section, name, row, rows) for name, row in shown.items()]
        print("\n".join(text_table(("case", *section.columns), lines)))
    return good


def _counts(found: Mapping[str, Row], failed: Sequence[str], missing: int) -> str:
    skipped = sum("skipped" in row for row in found.values())
    parts = {"right": len(found) - skipped - len(failed), "FAILED": len(failed), "skipped": skipped}
    parts["not reached"] = missing
    return ", ".join(f"{count} {what}" for what, count in parts.items() if count) or "nothing"


def _is_shown(section: Section, name: str, row: Row, failed: Sequence[str]) -> bool:
    """Sections that only say right or wrong show what is wrong."""
    return name in failed or (bool(section.columns) and "skipped" not in row)


def _cells(section: Section, name: str, row: Row, rows: Rows) -> tuple[str, ...]:
    if "error" in row:
        return (name, row["error"])
    if not section.columns:
        return (name, ", ".join(f"{key}={row[key]}" for key in sorted(row) if key.endswith(("wrong", "error"))))
    return (name, *(text_of(key, _value(section, name, row, key, rows)) for key in section.columns))


def _value(section: Section, name: str, row: Row, key: str, rows: Rows) -> Any:
    """A row's value; `x/plain` is the one of x over that of the model's reference."""
    key, over, reference = key.partition("/")
    below = rows.get((section.name, f"{name.split()[0]} {reference}"), {}).get(key) if over else 1
    return row.get(key) if not over else row[key] / below if row.get(key) and below else None


def text_of(key: str, value: Any) -> str:
    """A number as its key's unit wants it: bytes in MB, seconds in ms, other fractions with three digits."""
    if value is None:
        return "–"
    if key.endswith("bytes"):
        return f"{value / 1e6:.1f} MB"
    if key.endswith("_s") and not key.endswith("per_s"):
        return f"{1e3 * value:.3f} ms"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def text_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the last one free; nothing if there are no lines."""
    if not lines:
        return []
    rows = [head, *lines]
    widths = [max((min(len(row[i]), _WIDEST) for row in rows if i < len(row) - 1), default=0) for i in range(len(head))]
    padded = ([cell[:_WIDEST].ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]
