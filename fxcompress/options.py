"""The options: one frozen value, validated on construction, from a dict, the environment and a TOML file. Torch-free.

`from_mapping` is the one entrance for user input: explicit values lie over `FXCOMPRESS_<NAME>` variables, which lie
over the table `[options]` of the file that `FXCOMPRESS_CONFIG` names; the options of a `preset` lie right below those
of the layer that names it. An `Options` that exists is valid.
"""

import difflib
import functools
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import NoReturn, TypeAlias

from fxcompress import presets
from fxcompress.errors import OptionError, nearest
from fxcompress.option_rules import RULES, Rule
from fxcompress.option_rules import parse_bytes as parse_bytes
from fxcompress.precision import PrecisionRule

ENVIRONMENT_PREFIX = "FXCOMPRESS_"
CONFIG_VARIABLE = "FXCOMPRESS_CONFIG"
DECIDED_BY_PLAN = (
    "bits", "operand_bits", "codec", "error_bound", "adaptive", "rounding", "group", "stats", "budget", "lossy",
    "rules", "loss_chunks", "min_bytes", "max_error", "calibration",
)  # fmt: skip
"""Options that a replayed plan has already answered."""
_CHOSEN_BY_ERROR = ("bits", "operand_bits", "codec", "error_bound", "adaptive", "stats", "lossy")
"""Options that a limit on the gradient's error leaves nothing to decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything a user can choose. Hashable and picklable; equal options compile equal graphs."""

    bits: int = 4
    """Width for arguments of pointwise derivatives and normalizations: 1, 2, 4 or 8."""
    operand_bits: int = 8
    """Width for values that are, or are rebuilt into, operands of matrix products and convolutions: 2, 4 or 8.
    Attention operands and logits never get fewer than 8."""
    codec: str = "affine"
    """The lossy codec: affine, block2d, bounded, dual or float8; affine where another does not fit."""
    error_bound: float = 0.25
    """With codec="bounded": the largest error of an element, in root mean squares of its tensor."""
    adaptive: bool = False
    """With codec="bounded": bounds are set by `fxcompress.bounds` while training, instead of `error_bound`."""
    rounding: str = "auto"
    """How lossy codes are rounded: stochastic (unbiased), nearest, or auto: nearest at 8 bits, stochastic below."""
    group: int | str = 0
    """Elements that share one scale; 0 is the codec's own default, else a multiple of 16 in 16..1024. "head": those of
    an attention head share one, and the rest takes the default."""
    stats: str = "exact"
    """With group="head": each step's own ranges (exact), or ones that follow past steps (ema; `fxcompress.ranges`)."""
    budget: int | str | None = None
    """Highest predicted peak of a step, per graph: bytes (an int, or text such as "8GiB"), or a share of the predicted
    peak under PyTorch's own partition ("50%"). Parameters, their gradients and the optimizer's state do not count. What
    is kept, recomputed and encoded is then chosen together, at no fewer bits than the other options say."""
    max_error: float | None = None
    """Highest predicted error of the whole gradient, per graph: ‖Δ‖/‖gradient‖ of one step. Widths are then chosen per
    tensor, from 1 bit to keeping it, instead of `bits` and `operand_bits`: for the fewest saved bytes, or under a
    budget for the least time. The first step calibrates, or with a budget the first few; they are interpreted, the
    first at 8 bits."""
    calibration: str | None = None
    """With `max_error`: path of a table of errors (`fxcompress calibrate`), not calibrated in the first step."""
    lossy: bool = True
    """False: exact codecs only."""
    rules: tuple[PrecisionRule, ...] = ()
    """Precision rules, the first that matches a saved tensor wins; given as a list of dicts, or `[[rule]]` in TOML.
    Under a budget they say the least, as the widths do: tensors may be kept, or take 8 bits."""
    loss_chunks: int | str = "auto"
    """In how many chunks of tokens logits, their loss and their gradient are computed: auto, 0 (off), or a number."""
    min_bytes: int = 16384
    """Smaller tensors are kept as they are. An int, or text such as "16KiB"."""
    seed: int = 0
    """Seed of the rounding noise; the user's random stream is never read."""
    inner: str = "inductor"
    """The compiler that gets the rewritten graphs: inductor or aot_eager."""
    mode: str | None = None
    """Inductor mode, as `torch.compile(mode=…)`."""
    inductor: tuple[tuple[str, object], ...] = ()
    """Inductor config patches, given as a dict: dotted name to number, bool, string or list of those."""
    plan: str | None = None
    """Path of a plan file to replay instead of choosing."""
    save_plan: str | None = None
    """Path at which the plan is written."""
    strict: bool = False
    """Raise where otherwise a graph would be compiled unchanged with a warning."""
    disable_passes: tuple[str, ...] = ()
    """Names of passes to leave out; a list, or text with commas."""
    limit: int | None = None
    """Compress only the first n tensors; for bisection."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            object.__setattr__(self, name, _parsed(name, rule, getattr(self, name), f"option {name!r}"))
        _check_conflicts(self)

    def to_dict(self) -> dict[str, object]:
        """All options by name, JSON-able; `from_mapping` takes it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        rules = [rule.to_dict() for rule in self.rules]
        patches = self.inductor_patches()
        return {**values, "rules": rules, "inductor": patches, "disable_passes": list(self.disable_passes)}

    def inductor_patches(self) -> dict[str, object]:
        """The Inductor config patches as `compile_fx(config_patches=…)` takes them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self.inductor}

    def canonical(self) -> str:
        """JSON text for cache keys: options that can compile to different graphs have different texts.

        `save_plan` is left out, because where a report is written changes nothing. `plan` enters by its path only: a
        cache key must cover the content of that file besides.
        """
        values = self.to_dict()
        del values["save_plan"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"))


GivenOptions: TypeAlias = "Options | Mapping[str, object] | None"
"""What the doors take: options, a mapping of them as `torch.compile(options=…)` has, or None for the defaults."""


def from_mapping(mapping: Mapping[str, object] | None = None, *, mode: str | None = None) -> Options:
    """Build options from explicit values over environment variables over the TOML file.

    Args:
        mapping: what the user gave, for example as `torch.compile(options=…)`.
        mode: what the user gave as `torch.compile(mode=…)`.

    Raises:
        OptionError: a key is unknown, a value is wrong, or two options conflict.
    """
    explicit = dict(mapping or {})
    if mode is not None:
        if explicit.get("mode") is not None:
            raise OptionError(f"option 'mode' is given twice: mode={mode!r} and options['mode']={explicit['mode']!r}")
        explicit["mode"] = mode
    layers = (*_environment_layers(os.environ), ("option", explicit))
    values: dict[str, object] = {}
    for origin, layer in layers:
        for key, value in presets.expand(layer).items():
            rule = _rule(key, origin)
            values[key] = _parsed(key, rule, value, f"{origin} {key!r}")
    return Options(**values)  # type: ignore[arg-type]


def as_options(given: GivenOptions) -> Options:
    """Options as every door takes them: made already, or as `from_mapping` does.

    Raises:
        OptionError: as `from_mapping`; or `given` is neither options nor a mapping.
    """
    if isinstance(given, Options):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(f"options: found {given!r}, allowed: a mapping as {{'bits': 2}}, or Options(bits=2)")
    return from_mapping(given)


@functools.lru_cache
def under_rule(options: Options, rule: PrecisionRule) -> Options:
    """The options that hold for what a precision rule matches; a new codec drops what only the other one takes."""
    changes: dict[str, object] = {name: value for name, value in rule.settings().items() if name != "keep"}
    if rule.bits is not None:
        changes["operand_bits"] = max(rule.bits, 2)
    if rule.codec is not None:
        dropped = _TAKEN_BY_OTHERS.get(rule.codec, ("error_bound", "adaptive"))
        changes = {**{name: DEFAULTS[name] for name in dropped}, **changes}
    return replace(options, rules=(), plan=None, budget=None, max_error=None, calibration=None, **changes)  # type: ignore[arg-type]


_TAKEN_BY_OTHERS = {"bounded": ("rounding",), "float8": ("bits", "operand_bits", "error_bound", "adaptive")}
"""By codec, the options that conflict with it; any other has no error bound."""


def value_from_text(name: str, text: str, origin: str = "option") -> object:
    """Read the value of option `name` from a command line or an environment variable."""
    if name == presets.NAME:
        return text
    rule = _rule(name, origin)
    where = f"{origin} {name!r}"
    try:
        value = rule.from_text(text)
    except ValueError:
        _refuse(name, rule, text, where)
    return _parsed(name, rule, value, where)


DEFAULTS: dict[str, object] = {field.name: field.default for field in fields(Options) if field.default is not MISSING}

_NAMES = (*RULES, presets.NAME)


def _rule(key: object, origin: str) -> Rule:
    if not isinstance(key, str) or key not in RULES:
        raise OptionError(f"unknown {origin} {key!r}: {nearest(str(key), _NAMES)}")
    return RULES[key]


def _parsed(name: str, rule: Rule, value: object, where: str) -> object:
    try:
        return rule.parse(value)
    except ValueError:
        _refuse(name, rule, value, where)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def _refuse(name: str, rule: Rule, value: object, where: str) -> NoReturn:
    try:
        found = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        found = "a huge number"
    found = found if len(found) <= 80 else found[:77] + "..."
    raise OptionError(
        f"{where}: found {found} ({type(value).__name__}), allowed: {rule.allowed} (default {DEFAULTS[name]!r})"
    ) from None


def _check_conflicts(options: Options) -> None:
    """Refuse pairs of options of which one would silently be ignored."""
    changed = [name for name, default in DEFAULTS.items() if getattr(options, name) != default]
    for name in changed:
        if options.plan is not None and name in DECIDED_BY_PLAN:
            raise OptionError(f"options 'plan' and {name!r} conflict: the plan file already decides this; drop one")
        if options.inner != "inductor" and name in ("mode", "inductor"):
            raise OptionError(f"options 'inner' and {name!r} conflict: inner={options.inner!r} does not use Inductor")
        if options.codec != "bounded" and name in ("error_bound", "adaptive"):
            raise OptionError(f"options 'codec' and {name!r} conflict: {options.codec} has no error bound; drop one")
        if options.codec == "bounded" and name == "rounding":
            raise OptionError("options 'codec' and 'rounding' conflict: bounded always rounds to nearest; drop one")
        if name == "stats" and options.group != "head":
            raise OptionError("options 'stats' and 'group' conflict: only heads have running ranges; give group='head'")
        if name == "stats" and options.mode in ("reduce-overhead", "max-autotune"):
            raise OptionError("options 'stats' and 'mode' conflict: a replayed CUDA graph would not move the ranges")
        if options.codec == "float8" and name in ("bits", "operand_bits") and getattr(options, name) != 8:
            raise OptionError(f"options 'codec' and {name!r} conflict: float8 always stores 8 bits; drop one")
        if options.max_error is not None and name in _CHOSEN_BY_ERROR:
            raise OptionError(f"options 'max_error' and {name!r} conflict: max_error chooses affine widths; drop one")
    if options.calibration is not None and options.max_error is None:
        raise OptionError("option 'calibration' has no effect without 'max_error': give both, or neither")
    for number, rule in enumerate(options.rules, 1):
        if options.max_error is not None and rule.codec not in (None, "affine"):
            raise OptionError(
                f"option 'rules': rule {number} ({rule}): the error of {rule.codec} is not predicted; with max_error, "
                "rules take affine or keep"
            )
        try:
            under_rule(options, rule)
        except OptionError as error:
            raise OptionError(f"option 'rules': rule {number} ({rule}): {error}") from None
    if "custom_partitioner_fn" in dict(options.inductor):
        raise OptionError("option 'inductor': 'custom_partitioner_fn' is the seat of fxcompress itself; leave it out")


def _environment_layers(environ: Mapping[str, str]) -> tuple[tuple[str, dict[str, object]], ...]:
    variables: dict[str, object] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE or not environ[variable]:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name in _NAMES:
            variables[name] = value_from_text(name, environ[variable], "environment variable for option")
        elif close := difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.75):
            meant = ENVIRONMENT_PREFIX + close[0].upper()
            raise OptionError(f"unknown environment variable {variable!r}: did you mean {meant!r}?")
    path = environ.get(CONFIG_VARIABLE, "")
    table = _read_config(path) if path else {}
    return ((f"{path} option", table), ("environment variable for option", variables))


def _read_config(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{CONFIG_VARIABLE}={path}: cannot be read as TOML: {error}") from error
    stray = [key for key in content if key not in ("options", "rule")]
    table = content.get("options", {})
    if stray or not isinstance(table, dict):
        found = f"found {stray[0]!r}" if stray else f"found options = {table!r}"
        raise OptionError(f"{path}: {found}; a configuration file has one table, [options], and any number of [[rule]]")
    if "rule" not in content:
        return table
    if "rules" in table:
        raise OptionError(f"{path}: rules are given twice, as [[rule]] and in [options]; drop one")
    return {**table, "rules": content["rule"]}
