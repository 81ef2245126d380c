"""Typed access to user-supplied JSON: a value of the expected type, or a UserError.

`where` is the location of the value ("FILE, line 3"). Every message starts with it.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pid_jax.errors import UserError

T = TypeVar("T", str, int, bool, list, dict)

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class _Repeating(dict[str, Any]):
    """An object with repeated keys, whose values are ambiguous."""

    repeated: frozenset[str]


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) == len(pairs):
        return entry
    repeating = _Repeating(entry)
    keys = [key for key, _ in pairs]
    repeating.repeated = frozenset(key for key in entry if keys.count(key) > 1)
    return repeating


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more digits than Python converts
        return float(digits)


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
"""Marks objects with repeated keys, which `field` refuses."""


def json_of(text: str, where: str) -> Any:
    """The value of the JSON in `text`. Raises UserError for invalid JSON."""
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        position = (
            f"line {error.lineno}, column {error.colno}"
            if "\n" in text.rstrip()
            else f"character {error.pos + 1}"
        )
        raise UserError(f"{where}: not JSON: {error.msg} at {position}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON that can be read: {error}") from error


def field(entry: Any, key: str, kind: type[T], where: str) -> T:
    """entry[key], which must be a `kind`. Raises UserError if it is missing or repeated."""
    return checked(_value(entry, key, where), kind, f'"{key}"', where)


def optional(entry: Any, key: str, where: str) -> Any:
    """entry[key] of any type, or None without the key. Raises UserError for a repeated key."""
    if isinstance(entry, dict) and key not in entry:
        return None
    return _value(entry, key, where)


def identifier_of(entry: Any, key: str, where: str) -> str:
    """entry[key] as an identifier: a non-empty string, or an integer as its decimal digits."""
    value = _value(entry, key, where)
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        raise UserError(f'{where}: "{key}" must be a string or an integer, got {kind_of(value)}')
    if not value:
        raise UserError(f'{where}: "{key}" is empty')
    return checked(value, str, f'"{key}"', where)


def checked(value: Any, kind: type[T], name: str, where: str) -> T:
    """Returns `value`. Raises UserError for another type and for unpaired surrogates."""
    if _type(value) is not kind:
        raise UserError(f"{where}: {name} must be {_KINDS[kind]}, got {kind_of(value)}")
    # JSON can escape an unpaired surrogate, which no tokenizer and no file can encode.
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where}: {name} has an unpaired surrogate, which is not a character")
    typed: T = value
    return typed


def kind_of(value: Any) -> str:
    """The JSON type of a value: "an object", "a list", "null"."""
    return _KINDS[_type(value)]


def _value(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object {{...}}, got {kind_of(entry)}")
    if key not in entry:
        raise UserError(f'{where}: "{key}" is missing')
    if isinstance(entry, _Repeating) and key in entry.repeated:
        raise UserError(f'{where}: the key "{key}" occurs twice')
    return entry[key]


def _type(value: Any) -> type:
    return dict if isinstance(value, _Repeating) else type(value)
