"""Reading a Hugging Face `config.json` into a family's dataclass, with errors that name the key."""

import dataclasses
import types
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, end_token_ids

ConfigT = TypeVar("ConfigT")


def read_fields(
    cls: type[ConfigT],
    config: Mapping[str, Any],
    defaults: dict[str, Any],
    keys: Mapping[str, str] = types.MappingProxyType({}),
    within: str = "",
) -> ConfigT:
    """Builds the dataclass `cls` from the keys of `config` that it has fields for.

    A key that is absent or null takes its value from `defaults`, else the field's own
    default. Keys without a field do not change the computation and are not read. A list of
    end tokens becomes `eos_token_id` and `other_eos_token_ids`. Raises `UserError` for a value
    of another type than the field's.

    keys: by field, where the key has another name. within: where `config` is part of another,
    its key there and a dot, for errors.
    """
    hints = get_type_hints(cls)
    values = dict(defaults)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key = keys.get(field.name, field.name)
        value = config.get(key)
        if value is None:
            continue
        if key == "eos_token_id" and isinstance(value, list):
            value, *others = _end_tokens(value, within)
            values["other_eos_token_ids"] = tuple(others)
        elif isinstance(value, list) and len(value) == 1:  # any token may be written so
            value = value[0]
        expected = hints[field.name]
        if isinstance(expected, types.UnionType):  # with None, which is the absence of a value
            [expected] = set(get_args(expected)) - {types.NoneType}
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise UserError(
                f'config.json: "{within}{key}" must be of type {expected.__name__}, '
                f"but is {value!r}"
            )
        values[field.name] = value
    return cls(**values)


def without_aliases(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with each key under one name.

    aliases: transformers' `attribute_map`, second names and what they stand for. As there, a second
    name overrides the first, unless its value is null.
    """
    overrides = {
        name: config[alias] for alias, name in aliases.items() if config.get(alias) is not None
    }
    return {**config, **overrides}


def _end_tokens(ids: list[Any], within: str) -> list[int]:
    if not ids or not all(type(one) is int for one in ids):
        raise UserError(
            f'config.json: "{within}eos_token_id" must be a token id or a list of some, but is '
            f"{ids!r}"
        )
    return list(dict.fromkeys(ids))


def write_fields(
    config: Any, keys: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, Any]:
    """The fields of a configuration's dataclass as `read_fields` reads them."""
    values = dataclasses.asdict(config)
    del values["other_eos_token_ids"]
    values["eos_token_id"] = end_tokens(config)
    return {keys.get(name, name): value for name, value in values.items()}


def end_tokens(config: Config) -> int | list[int]:
    """`eos_token_id` as transformers has it: a list where several tokens end outputs."""
    ids = list(end_token_ids(config))
    return ids if len(ids) > 1 else ids[0]


def section(config: Mapping[str, Any], key: str, within: str = "") -> Mapping[str, Any]:
    """The configuration within `config` at this key, empty where it is absent or null.

    within: as in `read_fields`. Raises `UserError` for anything else.
    """
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f'config.json: "{within}{key}" must be of type dict, but is {value!r}')
    return value


def check_supported(key: str, value: object, supported: Collection[object]) -> None:
    """Raises `UserError` unless `value` is among those supported."""
    if value not in supported:
        listed = ", ".join(repr(choice) for choice in supported)
        raise UserError(f'config.json: "{key}": {value!r} is not supported; supported: {listed}')


def check_positive(config: object, *keys: str, within: str = "") -> None:
    """Raises `UserError` for the first of these fields that is not above zero."""
    for key in keys:
        value = getattr(config, key)
        if value <= 0:
            raise UserError(f'config.json: "{within}{key}" must be above 0, but is {value}')
