"""Run everything on the GPU of this machine: `python -m bench.device [--json file] [--minutes 10]`.

Rows are appended as they are measured; run again, it goes on where it stopped: cases that the file answers for this
commit and this machine are left out, those that failed are tried again. `--toy` runs every section at toy size on the
CPU, which checks the benchmark and measures nothing.
"""

import argparse
import datetime
import re
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.device import rows
from bench.device.section import Scale
from bench.device.sections import SECTIONS
from bench.device.summary import print_summary
from bench.device.supervise import run_section
from bench.device.worker import Order

DEFAULT = Path("bench/results/device.jsonl")
_LEAST_S = 5.0
"""With less time than this left, no section is started."""


def main() -> int:
    """Run the sections, print their tables; 1 if a case failed, is not ok, or has no row yet."""
    arguments = _arguments()
    scale = Scale("cpu", "aot_eager", True) if arguments.toy else Scale("cuda", "inductor", False)
    if scale.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --toy checks the benchmark itself on the CPU")
    known = [section.name for section in SECTIONS]
    wanted = arguments.sections.split(",") if arguments.sections else known
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"unknown section {unknown[0]!r}; known: {', '.join(known)}")
    about = rows.about(scale, arguments.commit)
    # Rows of this run, and with --fresh only those, stand for their cases.
    started = {"started": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")}
    out: Path = arguments.json or (Path(tempfile.mkdtemp()) / "toy.jsonl" if scale.toy else DEFAULT)
    end = time.monotonic() + 60 * arguments.minutes
    for section in SECTIONS:
        if section.name not in wanted:
            continue
        held = {} if arguments.fresh else rows.newest(out, about)
        names = tuple(
            name
            for name in section.cases(scale)
            if re.search(arguments.only, name) and not rows.is_answer(held.get((section.name, name)))
        )
        seconds = min(section.limit_s, end - time.monotonic())
        if not names or seconds < _LEAST_S:
            continue
        print(f"{section.name}: {len(names)} cases, at most {seconds:.0f} s", flush=True)
        order = Order(section.name, names, scale, str(out.resolve()), {**about, **started})
        run_section(section, order, seconds, lambda: _of_run(rows.newest(out, about), started))
    chosen = [section for section in SECTIONS if section.name in wanted]
    return int(not print_summary(chosen, scale, rows.newest(out, about)))


def _of_run(found: dict[tuple[str, str], rows.Row], started: dict[str, str]) -> dict[tuple[str, str], rows.Row]:
    return {key: row for key, row in found.items() if row["started"] == started["started"]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help=f"file of the rows (default {DEFAULT}; a temporary one of toys)")
    parser.add_argument("--minutes", type=float, default=9.5, help="when the last section is killed")
    parser.add_argument("--sections", default="", help=f"comma-separated: {', '.join(s.name for s in SECTIONS)}")
    parser.add_argument("--only", default="", help="run cases whose name this regular expression finds")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file answers already")
    parser.add_argument("--toy", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--commit", default="", help="commit of the sources, where they are no git repository")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
