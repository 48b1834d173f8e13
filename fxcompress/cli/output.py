"""How subcommands print: data on stdout, notes on stderr."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from fxcompress.errors import OptionError
from fxcompress.plan import SCHEMA_VERSION, Plan
from fxcompress.plan_diff import PlanDiff
from fxcompress.plan_io import dumps


def print_json(content: Mapping[str, object]) -> None:
    """Print one JSON object that states its schema version."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=1))


def print_plan(plan: Plan, args: argparse.Namespace) -> None:
    """Print a plan as the user asked: JSON, tables or nothing."""
    if args.json:
        sys.stdout.write(dumps(plan))
    elif not args.quiet:
        from fxcompress.report import table

        table.print_plan(plan, table.make_console(sys.stdout), verbose=args.verbose > 0)


def print_diff(difference: PlanDiff, args: argparse.Namespace) -> None:
    """Print the difference of two plans as the user asked."""
    if args.json:
        print_json(_diff_to_json(difference))
    elif not args.quiet:
        from fxcompress.report import table

        table.print_diff(difference, table.make_console(sys.stdout), verbose=args.verbose > 0)


def note(text: str, args: argparse.Namespace) -> None:
    """Say something that is not data."""
    if not args.quiet:
        print(text, file=sys.stderr)


def check_folder(path: str | Path | None) -> None:
    """Refuse a file to write whose folder does not exist, before work is done for it.

    Raises:
        OptionError: it does not.
    """
    if path is not None and not (folder := Path(path).absolute().parent).is_dir():
        raise OptionError(f"{path}: cannot be written: there is no folder {folder}")


def _diff_to_json(difference: PlanDiff) -> dict[str, object]:
    changes = []
    for change in difference.changes:
        decision = change.before or change.after
        assert decision is not None
        changes.append(
            {
                "graph": change.graph,
                "tensor": decision.tensor.name,
                "layer": decision.tensor.layer,
                "nbytes_before": change.before.nbytes if change.before else None,
                "nbytes_after": change.after.nbytes if change.after else None,
                "fields": list(change.fields),
            }
        )
    layers = [
        {"layer": layer.layer, "nbytes_before": layer.nbytes_before, "nbytes_after": layer.nbytes_after}
        for layer in difference.layers
    ]
    return {
        "equal": difference.equal,
        "first": difference.first,
        "graphs": list(difference.graphs),
        "changes": changes,
        "layers": layers,
        "saved_bytes_before": difference.saved_bytes_before,
        "saved_bytes_after": difference.saved_bytes_after,
    }
