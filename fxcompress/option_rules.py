"""What each option accepts: one `Rule` per name, and the readers they are made of. Torch-free."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NoReturn

from fxcompress.errors import OptionError, nearest
from fxcompress.precision import KEYS, NAMES, PrecisionRule

INNER = ("inductor", "aot_eager")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
BYTES = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?) *([KMGT]I?B|B)?", re.ASCII | re.IGNORECASE)
PASSES = (
    "chunk_loss", "find_cheap", "fold_masks", "fuse", "keep_order", "order_launches", "outline", "pick_lowering",
    "pin_products", "rebuild_weights", "replay_peak", "restore_kept", "save_early", "shield_inputs", "split_loops",
    "store_encoded", "store_gathered", "store_sums",
)  # fmt: skip
"""What may be left out; `outline` is the part of `pick_lowering` that makes codecs operators."""
PERCENT = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,9})? *%", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one option accepts: `parse` returns the clean value or raises ValueError; `allowed` says it in words."""

    allowed: str
    parse: Callable[[object], object]
    from_text: Callable[[str], object]


def parse_bytes(value: object) -> int:
    """Read a byte count: an int, or text with a unit such as "16KiB", "1.5GB" or "8GiB".

    Raises:
        ValueError: not a byte count of this form, negative, or above 2^63 - 1.
    """
    if isinstance(value, str):
        match = BYTES.fullmatch(value.strip())
        if match is None:
            raise ValueError(value)
        number, unit = match[1], (match[2] or "B").upper()
        base = 1024 if "I" in unit else 1000
        exact = Decimal(number) * base ** "BKMGT".index(unit[0])
        if unit == "B" and "." in number:
            raise ValueError(value)
        value = int(exact)
    return _whole(value, 0, 2**63 - 1)


def parse_budget(value: object) -> object:
    """Read a peak: a byte count, or a share of plain Inductor's peak such as "50%", which stays text.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, str) and value.strip().endswith("%"):
        share = Decimal(value.strip()[:-1].strip()) if PERCENT.fullmatch(value.strip()) else Decimal(0)
        if not 0 < share <= 1000:
            raise ValueError(value)
        return f"{share.normalize():f}%"
    return parse_bytes(value)


def _whole(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(value)
    return value


def _one_of(choices: tuple[str, ...]) -> Rule:
    def parse(value: object) -> object:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(value)
        return value

    return Rule("one of " + ", ".join(repr(choice) for choice in choices), parse, str)


def _widths(*widths: int) -> Rule:
    def parse(value: object) -> object:
        if _whole(value, 1, 8) not in widths:
            raise ValueError(value)
        return value

    return Rule("one of " + ", ".join(map(str, widths)), parse, int)


def _integer(low: int, high: int, allowed: str, *, step: int = 1) -> Rule:
    def parse(value: object) -> object:
        if _whole(value, low, high) % step:
            raise ValueError(value)
        return value

    return Rule(allowed, parse, int)


def _number(low: float, high: float, allowed: str) -> Rule:
    def parse(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(value)
        return float(value)

    return Rule(allowed, parse, float)


def _word_or(word: str, rule: Rule) -> Rule:
    return Rule(
        f"{rule.allowed}, or {word!r}",
        lambda value: word if value == word else rule.parse(value),
        lambda text: word if text == word else rule.from_text(text),
    )


def _optional(rule: Rule) -> Rule:
    return Rule(
        rule.allowed + ", or None",
        lambda value: None if value is None else rule.parse(value),
        lambda text: None if text.lower() == "none" else rule.from_text(text),
    )


def _parse_flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _flag_from_text(text: str) -> object:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _parse_chunks(value: object) -> object:
    if value == 1:
        raise ValueError(value)
    return value if value == "auto" else _whole(value, 0, 1024)


def _parse_path(value: object) -> object:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(value)
    return path


def _parse_names(value: object) -> object:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(value)
    stripped = {name.strip() for name in names} - {""}
    for name in sorted(stripped.difference(PASSES)):
        raise OptionError(f"unknown pass {name!r}: {nearest(name, PASSES)}")
    return tuple(sorted(stripped))


def _parse_patches(value: object) -> object:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple):
        raise ValueError(value)
    patches: dict[str, object] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] in patches:
            raise ValueError(value)
        patches[pair[0]] = _frozen_scalars(pair[1])
    return tuple(sorted(patches.items()))


def _frozen_scalars(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(_frozen_scalars(item) if not isinstance(item, list | tuple) else _nested() for item in value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and abs(value) < float("inf")):
        return value
    _nested()


def _nested() -> NoReturn:
    raise ValueError("a value that is neither plain nor a list of plain values")


def _parse_rules(value: object) -> object:
    rules = json.loads(value) if isinstance(value, str) else value
    if not isinstance(rules, list | tuple):
        raise ValueError(value)
    return tuple(_parse_precision(rule, number) for number, rule in enumerate(rules, 1))


def _parse_precision(value: object, number: int) -> PrecisionRule:
    """One precision rule from its table; its errors say which rule and which entry."""
    table = value.to_dict() if isinstance(value, PrecisionRule) else value
    if not isinstance(table, Mapping):
        raise OptionError(f"rule {number}: found {value!r:.80}, allowed: a table of keys and settings")
    clean: dict[str, object] = {}
    for name, entry in table.items():
        if name not in NAMES:
            raise OptionError(f"rule {number}: unknown entry {name!r}: {nearest(str(name), NAMES)}")
        rule = _PRECISION.get(name) or RULES[name]
        try:
            clean[name] = rule.parse(entry)
        except ValueError:
            raise OptionError(f"rule {number}, {name!r}: found {entry!r:.80}, allowed: {rule.allowed}") from None
    made = PrecisionRule(**clean)  # type: ignore[arg-type]
    settings = made.settings()
    if not settings:
        raise OptionError(f"rule {number}: it sets nothing; set one of {', '.join(NAMES[len(KEYS) :])}")
    if made.keep and len(settings) > 1:
        raise OptionError(f"rule {number}: keep=true and {list(settings)[1]!r} conflict: what is kept has no codec")
    return made


def _parse_pattern(value: object) -> object:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _patches_from_text(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(text) from None


_PATTERN = Rule("a pattern such as '*.mlp*'", _parse_pattern, str)
_PRECISION: dict[str, Rule] = {
    **dict.fromkeys(("layer", "op", "dtype"), _PATTERN),
    **dict.fromkeys(("min_elements", "max_elements"), _integer(0, 2**63 - 1, "an integer ≥ 0")),
    "keep": Rule("True or False", _parse_flag, _flag_from_text),
}
"""What the entries of a precision rule accept, where they are no options."""

RULES: dict[str, Rule] = {
    "bits": _widths(1, 2, 4, 8),
    "operand_bits": _widths(2, 4, 8),
    "codec": _one_of(("affine", "block2d", "bounded", "dual", "float8")),
    "error_bound": _number(2.0**-100, 2.0**100, "a number in 2^-100..2^100"),
    "adaptive": Rule("True or False", _parse_flag, _flag_from_text),
    "rounding": _one_of(("auto", "stochastic", "nearest")),
    "group": _word_or("head", _integer(0, 1024, "0 (the codec's default), a multiple of 16 in 16..1024", step=16)),
    "stats": _one_of(("exact", "ema")),
    "budget": _optional(Rule('a byte count such as "8GiB", or a share such as "50%"', parse_budget, str)),
    "max_error": _optional(_number(2.0**-20, 1.0, "a number in 2^-20..1")),
    "calibration": _optional(Rule("a path", _parse_path, str)),
    "lossy": Rule("True or False", _parse_flag, _flag_from_text),
    "loss_chunks": Rule(
        '"auto", 0 (off) or a number in 2..1024', _parse_chunks, lambda text: text if text == "auto" else int(text)
    ),
    "rules": Rule("a list of tables with keys and settings", _parse_rules, _patches_from_text),
    "min_bytes": Rule('a byte count such as 16384, "16KiB" or "1.5MB"', parse_bytes, str),
    "seed": _integer(0, 2**63 - 1, "an integer in 0..2^63-1"),
    "inner": _one_of(INNER),
    "mode": _optional(_one_of(MODES)),
    "inductor": Rule(
        "a dict of dotted Inductor config names to numbers, bools, strings, None or lists of those",
        _parse_patches,
        _patches_from_text,
    ),
    "plan": _optional(Rule("a path", _parse_path, str)),
    "save_plan": _optional(Rule("a path", _parse_path, str)),
    "strict": Rule("True or False", _parse_flag, _flag_from_text),
    "disable_passes": Rule(f"a list of pass names ({', '.join(PASSES)})", _parse_names, str),
    "limit": _optional(_integer(0, 2**31 - 1, "an integer ≥ 0")),
}
