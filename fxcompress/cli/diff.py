"""Compare two plan files: exit status 0 if they are equal, 1 if not.

example: fxcompress diff before.json after.json
"""

import argparse

from fxcompress.cli.output import print_diff
from fxcompress.plan_diff import diff
from fxcompress.plan_io import load


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `diff`."""
    parser.add_argument("first", help="a plan file")
    parser.add_argument("second", help="another plan file")


def run(args: argparse.Namespace) -> int:
    """Run `diff`."""
    difference = diff(load(args.first), load(args.second))
    print_diff(difference, args)
    return 0 if difference.equal else 1
