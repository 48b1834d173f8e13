"""Print what a model saves for backward, how each tensor is represented, and the bytes before and after.

Nothing is allocated and nothing compiled: the model is traced with fake tensors.

example: fxcompress explain bench.models:gpt2 --input "i64[8,128]<32000"
"""

import argparse

from fxcompress.cli.output import print_plan
from fxcompress.cli.target import add_target, read_target


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `explain`."""
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Run `explain`."""
    factory, inputs, options = read_target(args)
    from fxcompress.trace import explain

    print_plan(explain(factory, inputs, options), args)
    return 0
