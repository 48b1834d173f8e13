"""What a result file holds: the newest row of every case, by section and name."""

import json
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.device.section import Scale
from bench.record import environment

Row = Mapping[str, Any]
SAME = ("commit", "dirty", "device", "torch", "triton", "scale")
"""What must be equal for a row to count as measured already."""


def about(scale: Scale, commit: str = "") -> dict[str, Any]:
    """What every row states about the run: the environment, GPU driver and scale.

    Args:
        scale: of the run.
        commit: of the sources, where they are no git repository.
    """
    found = {"bench": "device", **environment(), "driver": _driver(), "triton": _version("triton")}
    found["scale"] = f"{scale.device} {scale.inner}{' toy' if scale.toy else ''}"
    if commit:
        found["commit"] = commit
    return found


def newest(path: Path, like: Mapping[str, Any]) -> dict[tuple[str, str], Row]:
    """Rows of the file that agree with `like` in `SAME`, by section and case; the last of a case counts.

    A line that was cut off while it was written is no row.
    """
    found: dict[tuple[str, str], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if all(row.get(key) == like[key] for key in SAME):
            found[row["section"], row["case"]] = row
    return found


def is_answer(row: Row | None) -> bool:
    """Whether a case need not run again: it was measured, or skipped for a reason."""
    return row is not None and "error" not in row


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def _version(package: str) -> str:
    if find_spec(package) is None:
        return ""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
