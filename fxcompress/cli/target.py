"""Arguments that name a model, its sample inputs and options: shared by the subcommands that look at a model."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from fxcompress.errors import OptionError, nearest
from fxcompress.inputs import InputSpec, parse_inputs
from fxcompress.options import Options, from_mapping, value_from_text


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add `module:factory`, `--input` and `--option`."""
    parser.add_argument(
        "target",
        metavar="module:factory",
        help="a callable in an importable module (the current folder counts) that takes no argument and returns an "
        "nn.Module, or (module, args), or (module, args, kwargs)",
    )
    parser.add_argument(
        "--input",
        metavar="SPEC",
        action="append",
        default=[],
        help='a sample input as "f32[8,1024]" or "i64[8,128]<32000" (random integers below 32000); repeat per argument',
    )
    parser.add_argument(
        "--option", metavar="NAME=VALUE", action="append", default=[], help="an option, as bits=2; repeat for more"
    )


def read_target(args: argparse.Namespace) -> tuple[Callable[[], object], tuple[InputSpec, ...], Options]:
    """Return factory, inputs and options, everything checked but the factory not called yet."""
    options = parse_options(args.option)
    inputs = parse_inputs(args.input)
    return load_factory(args.target), inputs, options


def parse_options(texts: Sequence[str]) -> Options:
    """Read `name=value` texts over the environment's defaults.

    Raises:
        OptionError: no `=`, a name given twice, or what `Options` refuses.
    """
    values: dict[str, object] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise OptionError(f"--option {text!r}: expected name=value")
        if name in values:
            raise OptionError(f"--option {name!r} is given twice")
        values[name] = value_from_text(name, value)
    return from_mapping(values)


def load_factory(target: str) -> Callable[[], object]:
    """Import `module:factory`, the current folder first on the path.

    Raises:
        OptionError: there is no such module or factory, or it cannot be called.
    """
    module_name, separator, path = target.partition(":")
    if not separator or not module_name or module_name.startswith(".") or not path:
        raise OptionError(f"target {target!r}: expected module:factory, as bench.models:gpt2")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        where = f"looked in {os.getcwd()} too"
        raise OptionError(f"target {target!r}: there is no module {error.name!r} ({where})") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise OptionError(f"target {target!r}: no {name!r} there; {nearest(name, _public(found))}")
        found = getattr(found, name)
    if not callable(found):
        raise OptionError(f"target {target!r}: a {type(found).__name__} cannot be called; expected a factory")
    return found


def _public(module: object) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name, None))]
