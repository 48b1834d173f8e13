"""Print a plan file.

example: fxcompress show plan.json
"""

import argparse

from fxcompress.cli.output import print_plan
from fxcompress.plan_io import load


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `show`."""
    parser.add_argument("file", help="a plan file")


def run(args: argparse.Namespace) -> int:
    """Run `show`."""
    print_plan(load(args.file), args)
    return 0
