"""Runs cases of one section and appends one row each: `python -m bench.device.worker < order`.

The order is one JSON object (`Order`). Ends with status `POISONED` after an error that leaves the CUDA context
unusable, so that the cases after it get another process.
"""

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.device.section import Measured, Scale, Skipped
from bench.device.sections import SECTIONS
from bench.record import append_rows, described

POISONED = 3
_SHOWN = 3000


@dataclass(frozen=True, slots=True)
class Order:
    """What to run. `about` is put into every row."""

    section: str
    names: tuple[str, ...]
    scale: Scale
    out: str
    about: Mapping[str, Any]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))


def read_order(text: str) -> Order:
    """Inverse of `Order.to_json`."""
    content = json.loads(text)
    content["scale"], content["names"] = Scale(**content["scale"]), tuple(content["names"])
    return Order(**content)


def run(order: Order) -> int:
    """Run every case of the order; the exit status."""
    section = next(section for section in SECTIONS if section.name == order.section)
    cases = section.cases(order.scale)
    for name in order.names:
        start = time.perf_counter()
        row, poisoned = run_case(cases[name])
        about = {"section": order.section, "case": name, "wall_s": round(time.perf_counter() - start, 3)}
        append_rows(Path(order.out), [{**order.about, **about, **row}])
        if poisoned:
            return POISONED
    return 0


def run_case(case: Callable[[], Measured]) -> tuple[Measured, bool]:
    """What a case found, or its error; and whether the process can run another after it."""
    # Dynamo gives up on a function that it has compiled a few times, and later cases would run in eager.
    torch.compiler.reset()
    try:
        return case(), False
    except Skipped as reason:
        return {"skipped": str(reason)}, False
    except Exception as error:
        where = "".join(traceback.format_exception(error))[-_SHOWN:]
        return {"error": described(error), "traceback": where}, "CUDA error" in str(error)


if __name__ == "__main__":
    sys.exit(run(read_order(sys.stdin.read())))
