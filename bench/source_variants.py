"""What `bench.sources` compares: every preset, our defaults, two codecs alone, and our planner at a preset's error."""

import re
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.source_tasks import Task
from bench.trial import Job
from bench.variants import REFERENCE, Variant
from fxcompress import calibration, sensitivity
from fxcompress.options import from_mapping
from fxcompress.presets import PRESETS

OURS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "block2d-2": {"codec": "block2d", "bits": 2, "operand_bits": 2},
    "affine-2": {"bits": 2, "operand_bits": 2},
}
CURVE: Mapping[str, Mapping[str, Any]] = {
    f"comet-{bits}b-{bound:g}": {"preset": "comet", "bits": bits, "operand_bits": bits, "error_bound": bound}
    for bits, bound in ((2, 1.0), (4, 0.125), (4, 0.5), (4, 1.0), (8, 0.015625))
}
"""Points of COMET's curve by width and bound, in root mean squares, besides the preset (4 bits, 0.25)."""
MATCH_GROUP = 256
"""Elements per range of our planner's plans where a name states no other, as in GACT and ActNN."""
LARGEST_LIMIT = 0.9
"""`max_error` is below 1."""


@dataclass(frozen=True, slots=True)
class Match:
    """`ours@REST` or `ours:GROUP@REST`: our planner's fewest bytes at no more error than a variant, or a number."""

    rest: str
    group: int

    @property
    def limit(self) -> float | None:
        """The number that is stated, if one is."""
        try:
            return float(self.rest)
        except ValueError:
            return None


def match_of(name: str) -> Match | None:
    """What the name of a variant is to be compared with; None for a variant that stands for itself."""
    found = re.fullmatch(r"ours(?::(\d+))?@(.+)", name)
    return Match(found[2], int(found[1] or MATCH_GROUP)) if found else None


def named(names: str) -> list[str]:
    """Variants by comma-separated names, the reference left out; `all`, `matched` and `curve` stand for several.

    Raises:
        ValueError: a name is unknown.
    """
    groups = {
        "all": [*OURS, *PRESETS],
        "matched": [f"ours@{name}" for name in PRESETS],
        "curve": ["comet", *CURVE],
    }
    wanted = [found for name in names.split(",") for found in groups.get(name, [name]) if found != REFERENCE]
    known = {*OURS, *PRESETS, *CURVE}
    if unknown := [name for name in wanted if not _is_known(name, known)]:
        raise ValueError(f"unknown variant {unknown[0]!r}; known: {', '.join((*groups, *sorted(known)))}")
    return list(dict.fromkeys(wanted))


def _is_known(name: str, known: Set[str]) -> bool:
    match = match_of(name)
    return name in known if match is None else match.limit is not None or match.rest in known


def make(name: str, task: Task, inner: str, folder: Path, error_of: Callable[[str], float]) -> Variant:
    """The variant called `name`; plans and tables of what is measured first go to `folder`.

    Args:
        name: as from `named`.
        task: whose untrained model and first batch are measured.
        inner: the inner compiler.
        folder: an existing folder.
        error_of: one-step gradient error of another variant, by name.
    """
    common = {"inner": inner, "min_bytes": task.min_bytes}
    if (match := match_of(name)) is not None:
        error = error_of(match.rest) if match.limit is None else match.limit
        return Variant(name, "actcomp", _matched({**common, "group": match.group}, task, error, folder / name))
    if name in PRESETS and PRESETS[name].made_by:
        return Variant(name, "actcomp", {"inner": inner, "plan": _calibrated(common, task, folder / f"{name}.json")})
    settings = OURS.get(name) or CURVE.get(name) or ({"preset": name} if name in PRESETS else {})
    return Variant(name, "actcomp", {**common, **settings})


def _compared(task: Task) -> Job:
    """The untrained model with its first batch; its step has the dropout masks under which variants are compared."""
    torch.manual_seed(0)
    return Job(task.build(), task.batches(0, 1)[0])


def _calibrated(options: Mapping[str, Any], task: Task, path: Path) -> str:
    """Make the plan of gact-l2 from one step of the untrained model, and say what it cost."""
    job = _compared(task)
    start = from_mapping({**sensitivity.GACT, **options})
    began = time.perf_counter()
    found = sensitivity.calibrate(job.module, job.step, path, options=start)
    widths = " ".join(str(tensor.bits) for tensor in found.tensors)
    print(
        f"gact-l2: {found.backward_passes} backward passes, {time.perf_counter() - began:.1f} s, bits {widths}, "
        f"expected gradient error {found.expected_error:.3f}"
    )
    return str(path)


def _matched(options: Mapping[str, Any], task: Task, error: float, path: Path) -> Mapping[str, Any]:
    """Options under which our planner saves the fewest bytes at a predicted error of at most `error`."""
    job = _compared(task)
    limited = {**options, "max_error": min(error, LARGEST_LIMIT)}
    calibration.calibrate(job.module, job.step, path, options=from_mapping(limited))
    return {**limited, "calibration": str(path)}
