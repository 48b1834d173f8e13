"""Make the plan of a model and write it to a file.

The file is read by show, diff and the option `plan`, which replays it.

example: fxcompress plan bench.models:gpt2 --input "i64[8,128]<32000" --option bits=2 -o plan.json
"""

import argparse

from fxcompress.cli.output import check_folder, note, print_plan
from fxcompress.cli.target import add_target, read_target
from fxcompress.plan_io import save


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    add_target(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to write the plan")


def run(args: argparse.Namespace) -> int:
    """Run `plan`."""
    check_folder(args.output)
    factory, inputs, options = read_target(args)
    from fxcompress.trace import explain

    plan = explain(factory, inputs, options)
    save(args.output, plan)
    print_plan(plan, args)
    tensors = sum(len(graph.decisions) for graph in plan.graphs)
    note(f"{args.output}: {len(plan.graphs)} graphs, {tensors} tensors", args)
    return 0
