"""Reading JSON that users bring: a value of the type that was asked for, or a UserError.

`where` says where the value stands ("FILE, line 3"): every message begins with it.
"""

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


def field(entry: Any, key: str, kind: type[T], where: str) -> T:
    """entry[key], which must be a `kind`; a string as `checked` takes it."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object {{...}}, got {kind_of(entry)}")
    if key not in entry:
        raise UserError(f'{where}: "{key}" is missing')
    return checked(entry[key], kind, f'"{key}"', where)


def checked(value: Any, kind: type[T], name: str, where: str) -> T:
    """`value`, which must be a `kind`, and a string without unpaired surrogates."""
    if type(value) is not kind:
        raise UserError(f"{where}: {name} must be {_KINDS[kind]}, got {kind_of(value)}")
    # JSON can escape half a surrogate pair, which no tokenizer and no file can take.
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where}: {name} has an unpaired surrogate, which is no character")
    return value


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value: "an object", "a list", "null"."""
    return _KINDS[type(value)]
