"""Reading JSON that users bring: a value of the type that was asked for, or a UserError.

`where` says where the value stands ("FILE, line 3"): every message begins with it.
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
    """An object with keys that come twice: nobody can tell which value is meant."""

    repeated: frozenset[str]


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    repeating = _Repeating(made)
    keys = [key for key, _ in pairs]
    repeating.repeated = frozenset(key for key in made if keys.count(key) > 1)
    return repeating


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # longer than Python converts, in a value that nobody reads
        return float(digits)


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
"""Knows of keys that come twice, which `field` refuses."""


def json_of(text: str, where: str) -> Any:
    """What the JSON in `text` says."""
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = (
            f"line {error.lineno}, column {error.colno}"
            if "\n" in text.rstrip()
            else f"character {error.pos + 1}"
        )
        raise UserError(f"{where}: not JSON: {error.msg} at {place}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON that can be read: {error}") from error


def field(entry: Any, key: str, kind: type[T], where: str) -> T:
    """entry[key], which must be a `kind` and there once; a string as `checked` takes it."""
    return checked(_value(entry, key, where), kind, f'"{key}"', where)


def optional(entry: Any, key: str, where: str) -> Any:
    """entry[key] of any type; None where it is not there. A key that comes twice is refused."""
    if isinstance(entry, dict) and key not in entry:
        return None
    return _value(entry, key, where)


def identifier_of(entry: Any, key: str, where: str) -> str:
    """entry[key], a string that is not empty, or an integer: then its decimal digits."""
    value = _value(entry, key, where)
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        raise UserError(f'{where}: "{key}" must be a string or an integer, got {kind_of(value)}')
    if not value:
        raise UserError(f'{where}: "{key}" is empty')
    return checked(value, str, f'"{key}"', where)


def checked(value: Any, kind: type[T], name: str, where: str) -> T:
    """`value`, which must be a `kind`, and a string without unpaired surrogates."""
    if _type(value) is not kind:
        raise UserError(f"{where}: {name} must be {_KINDS[kind]}, got {kind_of(value)}")
    # JSON can escape half a surrogate pair, which no tokenizer and no file can take.
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where}: {name} has an unpaired surrogate, which is no character")
    found: T = value
    return found


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value: "an object", "a list", "null"."""
    return _KINDS[_type(value)]


def _value(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object {{...}}, got {kind_of(entry)}")
    if key not in entry:
        raise UserError(f'{where}: "{key}" is missing')
    if isinstance(entry, _Repeating) and key in entry.repeated:
        raise UserError(f'{where}: the key "{key}" is there twice')
    return entry[key]


def _type(value: Any) -> type:
    return dict if isinstance(value, _Repeating) else type(value)
