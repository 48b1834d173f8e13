"""Plan files and tables of errors: JSON in, JSON out. `loads` believes nothing; what passes it is a well-typed `Plan`.

Torch-free. Equal plans give byte-identical text. Reading follows the dataclass types of plan.py and facts.py, so that a
field added there is read, written and checked without a change here. A list of (name, value) pairs is a JSON object.
"""

import functools
import json
import math
import os
import secrets
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from fxcompress.error_table import TABLE_VERSION, ErrorTable
from fxcompress.errors import PlanError, nearest
from fxcompress.plan import SCHEMA_VERSION, Plan

MAX_TEXT = 64 * 2**20
"""Longest plan file that is read, in bytes; a plan of a thousand graphs is a tenth of it."""
MAX_INT = 2**63 - 1
PAIRS = tuple[tuple[str, int | float | str | bool], ...]

_KINDS = {
    frozenset(field.name for field in fields(kind)): noun
    for kind, noun in ((Plan, "plan"), (ErrorTable, "table of errors"))
}
"""What a file is by its fields, so that one given for the other is not taken for an old one."""

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def dumps(plan: Plan | ErrorTable) -> str:
    """Return the text of a plan file, or of a file of calibrated errors.

    Raises:
        PlanError: a value has no JSON form (a float that is not finite, a repeated parameter name).
    """
    return _render(to_json(plan), "") + "\n"


def loads(text: str, where: str = "plan") -> Plan:
    """Read a plan file's text; `where` names it in errors.

    Raises:
        PlanError: the text is not a plan of this schema version; the message names the place and what was found there.
    """
    return typing.cast(Plan, _loads(text, where, Plan, SCHEMA_VERSION, "plan"))


def _loads(text: str, where: str, kind: type, version: int, noun: str) -> object:
    if len(text) > MAX_TEXT:
        raise PlanError(f"{where}: longer than {MAX_TEXT} bytes, which no {noun} is")
    try:
        content = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_parse_finite
        )
    except RecursionError:
        raise PlanError(f"{where}: nested too deeply to be a {noun}") from None
    except ValueError as error:
        raise PlanError(f"{where}: not a JSON {noun}: {error}") from None
    if isinstance(content, dict) and (found := content.get("schema_version")) != version:
        if (other := _KINDS.get(frozenset(content), noun)) != noun:
            raise PlanError(f"{where}: this is a {other}, not a {noun}")
        raise PlanError(
            f"{where}: schema_version: expected {version}, found {_shown(found)}; "
            f"make the {noun} again with this version of fxcompress"
        )
    try:
        return _read(kind, content, "")
    except _Mismatch as mismatch:
        raise PlanError(f"{where}: {mismatch}") from None


def load(path: str | os.PathLike[str]) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: the file cannot be read or is no plan.
    """
    return loads(_text_of(path), os.fspath(path))


def load_errors(path: str | os.PathLike[str]) -> ErrorTable:
    """Read a file of calibrated errors.

    Raises:
        PlanError: the file cannot be read or is no such file.
    """
    found = _loads(_text_of(path), os.fspath(path), ErrorTable, TABLE_VERSION, "table of errors")
    return typing.cast(ErrorTable, found)


def _text_of(path: str | os.PathLike[str]) -> str:
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT + 1)
        return content.decode("utf-8")
    except OSError as error:
        raise PlanError(f"{where}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise PlanError(f"{where}: not a JSON plan: {error}") from error


def save(path: str | os.PathLike[str], plan: Plan | ErrorTable) -> None:
    """Write a file so that at every moment `path` holds either its old content or the whole new one.

    Raises:
        PlanError: the file cannot be written; what stood there is untouched.
    """
    content = dumps(plan).encode("ascii")
    try:
        target = Path(os.path.realpath(path))
        beside = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            with open(beside, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            with suppress(OSError):
                beside.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{os.fspath(path)}: plan cannot be written: {reason}") from error


def to_json(value: object) -> Json:
    """Return the JSON form of a plan or of any dataclass in it, fields in their order of declaration."""
    if is_dataclass(value):
        kind: Any = type(value)
        hints = _hints(kind)
        return {
            field.name: _pairs_to_json(getattr(value, field.name))
            if hints[field.name] == PAIRS
            else to_json(getattr(value, field.name))
            for field in fields(value)
        }
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise PlanError(f"a plan cannot hold {value!r}")
    if isinstance(value, str | int | float):
        return value
    raise PlanError(f"a plan cannot hold a {type(value).__name__}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _pairs_to_json(pairs: Iterable[tuple[str, object]]) -> Json:
    content: dict[str, Json] = {}
    for name, value in pairs:
        if name in content:
            raise PlanError(f"the parameter {name!r} is given twice")
        if not isinstance(value, str | int | float):
            raise PlanError(f"the parameter {name!r} is a {type(value).__name__}, which a plan cannot hold")
        content[name] = to_json(value)
    return content


def _render(value: Json, indent: str) -> str:
    """Like json.dumps(indent=1), but a list of plain values stays on one line: shapes and timelines would be pages."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {_render(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        lines = [inner + _render(item, inner) for item in value]
        return "[\n" + ",\n".join(lines) + "\n" + indent + "]"
    return json.dumps(value)


class _Mismatch(Exception):
    """A value is not of the type that its place asks for."""


class _Repeated(dict[str, object]):
    """Stands for a JSON object in which `key` occurs twice, until the reader knows the place to name."""

    def __init__(self, key: str) -> None:
        self.key = key


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content: dict[str, object] = {}
    for key, value in pairs:
        if key in content:
            return _Repeated(key)
        content[key] = value
    return content


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"the constant {text} is not allowed")


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _read(kind: Any, value: object, place: str) -> object:
    """Return `value` as `kind`, one of the field types that plan.py and facts.py use."""
    if kind == PAIRS:
        items = _read_object(value, place).items()
        return tuple((name, _read_scalar((int, float, str, bool), item, _join(place, name))) for name, item in items)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, place)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list):
            _mismatch(place, "a list", value)
        return tuple(_read(typing.get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in typing.get_args(kind):
            _mismatch(place, "one of " + ", ".join(map(repr, typing.get_args(kind))), value)
        return value
    accepted = typing.get_args(kind) if origin in (types.UnionType, typing.Union) else (kind,)
    return _read_scalar(accepted, value, place, low=0)


def _read_dataclass(kind: Any, value: object, place: str) -> object:
    content = _read_object(value, place)
    hints = _hints(kind)
    for key in content:
        if key not in hints:
            raise _Mismatch(f"{_join(place, key)}: unknown field; {nearest(key, hints)}")
    for key in hints:
        if key not in content:
            raise _Mismatch(f"{_join(place, key)}: missing")
    return kind(**{key: _read(hint, content[key], _join(place, key)) for key, hint in hints.items()})


def _read_object(value: object, place: str) -> dict[str, object]:
    if isinstance(value, _Repeated):
        raise _Mismatch(f"{_join(place, value.key)}: given twice")
    if not isinstance(value, dict):
        _mismatch(place or "top level", "an object", value)
    return value


def _read_scalar(accepted: tuple[type, ...], value: object, place: str, *, low: int = -MAX_INT) -> object:
    fits = isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool))
    if fits and isinstance(value, int) and not isinstance(value, bool):
        fits = low <= value <= MAX_INT
    if not fits:
        integer = "a non-negative integer" if low == 0 else "an integer"
        words = {int: integer, float: "a number", str: "a string", bool: "true or false"}
        _mismatch(place, " or ".join(words[kind] for kind in accepted), value)
    return value


def _join(place: str, key: str) -> str:
    return f"{place}.{key[:60]}" if place else key[:60]


def _mismatch(place: str, expected: str, value: object) -> NoReturn:
    raise _Mismatch(f"{place}: expected {expected}, found {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
