"""Measure in one training step how the gradient's error depends on the width of every saved tensor.

The table is what the option calibration reads, so that max_error chooses the same plan in every process and on every
rank. Give the options of the training to come, max_error included: with a budget, the table is about the cut that keeps
it, and with a limit about the plan that follows from it.

example: fxcompress calibrate bench.models.zoo:gpt2 --option inner=aot_eager --option max_error=0.05 -o errors.json
"""

import argparse
from dataclasses import asdict

from fxcompress.cli.output import check_folder, note, print_json
from fxcompress.cli.target import add_target, read_target


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `calibrate`."""
    add_target(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to write the table")


def run(args: argparse.Namespace) -> int:
    """Run `calibrate`."""
    check_folder(args.output)
    factory, inputs, options = read_target(args)
    from fxcompress.stored_errors import calibrated_step

    table = calibrated_step(factory, inputs, options, args.output)
    if args.json:
        print_json(asdict(table))
    tensors = sum(len(graph.tensors) for graph in table.graphs)
    note(f"{args.output}: {len(table.graphs)} graphs, {tensors} tensors", args)
    return 0
