"""Write a report of a model: its memory over a step, other settings, what is saved and how, and the graphs.

One HTML page without scripts or requests, and exports for other viewers. Nothing is allocated and nothing compiled: the
model is traced with fake tensors, and every number is predicted. Without --no-sweep, about eight other settings are
tried for comparison, each one more trace.

--perfetto writes a trace for ui.perfetto.dev; --memory-viz a snapshot for pytorch.org/memory_viz, where device 0 is
PyTorch's own cut and device 1 the plan.

example: fxcompress report bench.models.zoo:gpt2 -o report.html --perfetto trace.json
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.cli.output import check_folder, note, print_json
from fxcompress.cli.target import add_target, read_target
from fxcompress.errors import OptionError

if TYPE_CHECKING:
    from fxcompress.report.data import Survey
    from fxcompress.timeline import Timeline


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    add_target(parser)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="where to write the page")
    parser.add_argument("--perfetto", metavar="FILE", type=Path, help="where to write the trace (JSON)")
    parser.add_argument("--memory-viz", metavar="FILE", type=Path, help="where to write the snapshot (pickle)")
    parser.add_argument("--no-sweep", action="store_true", help="leave out the other settings")


def run(args: argparse.Namespace) -> int:
    """Run `report`."""
    if not (args.output or args.perfetto or args.memory_viz or args.json):
        raise OptionError("nothing to write: name a file with -o, --perfetto or --memory-viz, or ask for --json")
    for path in (args.output, args.perfetto, args.memory_viz):
        check_folder(path)
    factory, inputs, options = read_target(args)
    from fxcompress.survey import survey

    result = survey(
        factory,
        inputs,
        options,
        target=args.target,
        sweep=not args.no_sweep and bool(args.output or args.json),
        progress=(lambda text: note(f"tracing: {text}", args)) if args.verbose else lambda text: None,
    )
    for path, content in _files(args, result):
        _write(path, content)
        note(f"{path}: {len(content)} bytes", args)
    if args.json:
        print_json({"target": result.target, "settings": [asdict(point) for point in result.points]})
    return 0


def _files(args: argparse.Namespace, result: "Survey") -> list[tuple[Path, bytes]]:
    files = []
    if args.output:
        from fxcompress.report.page import render

        files.append((args.output, render(result).encode()))
    if args.perfetto:
        from fxcompress.report.perfetto import to_perfetto

        files.append((args.perfetto, to_perfetto(_named(result)).encode()))
    if args.memory_viz:
        from fxcompress.report.memory_viz import to_memory_viz

        files.append((args.memory_viz, to_memory_viz(list(_named(result).values()))))
    return files


def _named(result: "Survey") -> "dict[str, Timeline]":
    """Every timeline by its name: per graph PyTorch's own cut, then the plan."""
    named = {}
    for number, view in enumerate(result.graphs, 1):
        suffix = f", graph {number}" if len(result.graphs) > 1 else ""
        named[f"PyTorch's own cut{suffix}"] = view.before
        named[f"the plan{suffix}"] = view.after
    return named


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written: {error.strerror or error}") from error
