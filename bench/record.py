"""Result rows: what a run states about itself, JSON lines, and paired statistics."""

import json
import math
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rich.console import Console

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t at 0.975 for 1, 2, … degrees of freedom; beyond the table its last entry is used, which widens."""

ERROR_LENGTH = 400


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the half width of its 95 % interval; NaN half width for a single value."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.half_width:.4f}"


def interval(differences: Sequence[float]) -> Interval:
    """Student interval of the mean of paired differences."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Interval(mean, math.nan)
    quantile = T_975[min(len(differences) - 1, len(T_975)) - 1]
    return Interval(mean, quantile * statistics.stdev(differences) / math.sqrt(len(differences)))


def environment() -> dict[str, Any]:
    """Versions, commit, processor and thread count: what a reader needs to repeat a row."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        # Rows that a run appends to the results do not change what it measures.
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append each row as one JSON line; a number that is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(_finite(row), sort_keys=True, allow_nan=False) + "\n" for row in rows)


def described(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:ERROR_LENGTH]}"


def wide_console() -> "Console":
    """A console on which the benchmarks' tables fit; a pipe would otherwise count as 80 columns."""
    from rich.console import Console

    return Console(width=max(Console().width, 120))


def megabytes(nbytes: float | None) -> str:
    """Text in MB (10^6 bytes)."""
    return "–" if nbytes is None else f"{nbytes / 1e6:.2f}"


def ratio(over: float | None, under: float | None, digits: int = 2) -> str:
    """Text of over / under, a dash where one is missing."""
    return "–" if over is None or not under else f"{over / under:.{digits}f}x"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
