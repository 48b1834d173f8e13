"""Run one training step with and without compression and compare loss, outputs and every gradient.

Under the option max_error the plan predicts that error; it is calibrated first, on the same step, and printed beside
the measured one. Exit status 1 if the whole gradient's relative error is above --max-error, or if something that must
be equal is not.

example: fxcompress verify bench.models:tiny --input "f32[8,64]" --bisect
"""

import argparse
import sys
from dataclasses import asdict, replace

from fxcompress.cli.output import note, print_json
from fxcompress.cli.target import add_target, read_target
from fxcompress.errors import OptionError
from fxcompress.option_rules import INNER


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    add_target(parser)
    parser.add_argument("--inner", choices=INNER, default="aot_eager", help="inner compiler (default: aot_eager)")
    parser.add_argument(
        "--max-error",
        type=float,
        help="largest relative error allowed (default: 1.1 times the option max_error if that is given, else 0.1)",
    )
    parser.add_argument(
        "--per-tensor",
        action="store_true",
        help="with the option max_error: also predicted and measured tensor by tensor",
    )
    parser.add_argument("--bisect", action="store_true", help="find the first tensor that is too much")


def run(args: argparse.Namespace) -> int:
    """Run `verify`."""
    if args.max_error is not None and not args.max_error >= 0:
        raise OptionError(f"--max-error: found {args.max_error}, allowed: a number ≥ 0")
    factory, inputs, options = read_target(args)
    if args.per_tensor and options.max_error is None:
        raise OptionError("--per-tensor compares with what the option max_error predicts: add --option max_error=0.05")
    options = replace(options, inner=args.inner)
    from fxcompress.verify import verify

    result = verify(factory, inputs, options, bisect=args.bisect, max_error=args.max_error, per_tensor=args.per_tensor)
    if args.json:
        print_json(asdict(result))
    elif not args.quiet:
        from fxcompress.report.errors import print_verification
        from fxcompress.report.table import make_console

        print_verification(result, make_console(sys.stdout), verbose=args.verbose > 0)
    if not result.ok:
        note(f"failed: {result.failure}", args)
    return 0 if result.ok else 1
