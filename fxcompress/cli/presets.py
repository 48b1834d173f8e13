"""Print the presets: published systems as options, their sources, and where we deviate from them and why.

example: fxcompress explain bench.models.zoo:cnn --option preset=division
"""

import argparse
from textwrap import fill

from fxcompress.cli.output import print_json
from fxcompress.presets import PRESETS, Preset, find


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `presets`."""
    parser.add_argument("names", nargs="*", metavar="name", help="show these only")


def run(args: argparse.Namespace) -> int:
    """Run `presets`."""
    chosen = {name: find(name) for name in args.names} or dict(PRESETS)
    if args.json:
        print_json({"presets": {name: _to_json(preset) for name, preset in chosen.items()}})
    elif not args.quiet:
        print("\n\n".join(_text(name, preset) for name, preset in chosen.items()))
    return 0


def _to_json(preset: Preset) -> dict[str, object]:
    return {
        "source": preset.source,
        "what": preset.what,
        "options": dict(preset.options),
        "deviations": list(preset.all_deviations),
        "made_by": preset.made_by,
    }


def _text(name: str, preset: Preset) -> str:
    options = " ".join(f"{key}={value}" for key, value in preset.options.items()) or preset.made_by
    lines = [name, f"  source   {preset.source}", f"  stores   {preset.what}", f"  options  {options}", "  deviates"]
    return "\n".join([*lines, *(_bullet(deviation) for deviation in preset.all_deviations)])


def _bullet(text: str) -> str:
    return fill(text, 110, initial_indent="    - ", subsequent_indent="      ")
