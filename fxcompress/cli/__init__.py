"""The command `fxcompress`: one module per subcommand, each with `prepare_parser(parser)` and `run(args) -> int`.

Data goes to stdout and notes to stderr. Exit status: 0 fine, 1 a check failed or two plans differ, 2 anything else that
kept the command from its answer: usage, bad input, an error in the user's model.
"""

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

import fxcompress
from fxcompress.cli import calibrate, diff, env, explain, maxbatch, plan, presets, report, show, verify
from fxcompress.errors import FxcompressError

COMMANDS = {
    "explain": explain, "plan": plan, "show": show, "diff": diff, "verify": verify, "calibrate": calibrate,
    "report": report, "maxbatch": maxbatch, "presets": presets, "env": env,
}  # fmt: skip
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # An ASCII-only stream gets a question mark for an arrow instead of an exception.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    args = make_parser().parse_args(argv)
    try:
        with _short_warnings():
            status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has what it wanted (`| head`); nothing may be written to the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        # Python's own status for an uncaught error is 1, which here means that a check was made and failed.
        return _report(error, verbose=args.verbose > 1)


def _report(error: Exception, *, verbose: bool) -> int:
    """Print our own errors in one line, those of the user's model or of PyTorch in full, and what they were last."""
    cause = getattr(error, "inner_exception", error)  # torch.compile wraps what a backend raises
    if verbose or not isinstance(cause, FxcompressError):
        traceback.print_exception(error)
    if isinstance(cause, FxcompressError):
        print(f"fxcompress: {cause}", file=sys.stderr)
    else:
        text = " ".join(str(error).partition("\n\n")[0].split())
        print(f"fxcompress: the model, or PyTorch, raised {type(error).__name__}: {text}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Our own warnings in one line: the place in our sources where they are raised tells a user nothing."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            _, ours, text = str(message).partition("actcomp: ")
            if ours:
                print(f"fxcompress: warning: {text}", file=file or sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; torch is not imported for it."""
    parser = argparse.ArgumentParser(
        prog="fxcompress", description="Plan how every tensor saved for backward is represented, and explain the plan."
    )
    parser.add_argument("--version", action="version", version=f"fxcompress {fxcompress.__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        subparser = subparsers.add_parser(
            name, help=summary, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        subparser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        subparser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: show tracebacks")
        subparser.add_argument("-q", "--quiet", action="store_true", help="print no notes and no tables")
        command.prepare_parser(subparser)
        subparser.set_defaults(run=command.run)
    return parser
