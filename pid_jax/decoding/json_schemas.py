"""JSON schemas as regular expressions: every text that matches is JSON that satisfies the schema.

The reverse does not hold. Properties come in the order of the schema, none is added, whitespace
is at most one space behind a comma or a colon, and numbers have no exponent. A keyword that a
regular expression cannot enforce is an error, so that no output contradicts the schema.
https://json-schema.org/draft/2020-12 defines the keywords.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from pid_jax.decoding.regular_expressions import (
    byte_automaton,
    escaped,
    without_anchors,
)
from pid_jax.errors import UserError

_ANNOTATIONS = frozenset(
    [
        *("$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions"),
        *("deprecated", "description", "discriminator", "examples", "readOnly", "title"),
        "writeOnly",
    ]
)
_KEYWORDS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum",),
    "number": ("minimum",),
    "boolean": (),
    "null": (),
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_SHAPES = {"properties": dict, "required": list, "prefixItems": list, "pattern": str}
_COMMA, _COLON = ",[ ]?", ":[ ]?"
_CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])'
_INTEGER = "(?:0|[1-9][0-9]*)"
_NUMBER = rf"{_INTEGER}(?:\.[0-9]+)?"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
"""0001 to 9999, as in Python's `datetime`."""
_MULTIPLE_OF_FOUR = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"(?:[0-9]{{2}}{_MULTIPLE_OF_FOUR}|{_MULTIPLE_OF_FOUR}00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_HOUR_AND_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR_AND_MINUTE}:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+\-]{_HOUR_AND_MINUTE})"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "-".join(f"[0-9a-fA-F]{{{size}}}" for size in (8, 4, 4, 4, 12)),
}


def regex_of_schema(schema: Any) -> str:
    """A regular expression of texts that satisfy a schema, for `byte_automaton`.

    schema: as `json.loads` returns it. Raises `UserError`, with the path in the schema, for what
    is malformed, what a regular expression cannot enforce, and values of unlimited depth.
    """
    return _Translation(schema).regex(schema, "$", ())


class _Translation:
    def __init__(self, root: Any) -> None:
        self.root = root

    def regex(self, schema: Any, path: str, references: tuple[str, ...]) -> str:
        """references: those that lead here, which recursion would repeat."""
        if not isinstance(schema, Mapping):
            raise UserError(f"{path}: {schema!r} is no JSON schema with keywords: give a mapping")
        keywords = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
        match keywords:
            case {"$ref": reference, **others}:
                _only(path, others, ())
                if reference in references:
                    raise UserError(
                        f"{path}: {reference} refers to itself. A regular expression has no "
                        "recursion: write out as many levels as you need"
                    )
                return self.regex(self._target(reference, path), path, (*references, reference))
            case {"anyOf": branches, **others} | {"allOf": [_] as branches, **others}:
                _only(path, others, ())
                return self._any_of(branches, f"{path}.anyOf", references)
            case {"enum": [_, *_] as values, **others}:
                return _values(values, path, others)
            case {"const": value, **others}:
                return _values([value], path, others)
            case {"oneOf": _}:
                raise UserError(
                    f"{path}.oneOf cannot be enforced, since outputs may satisfy several of its "
                    "schemas: write anyOf"
                )
        types = keywords.pop("type", None) or [
            name for name, own in _KEYWORDS.items() if keywords.keys() & set(own)
        ]
        types = types if isinstance(types, list) else [types]
        unknown = [name for name in types if name not in _TYPES]
        if unknown:
            raise UserError(f"{path}.type: {unknown[0]!r} is none of {', '.join(_TYPES)}")
        _only(path, keywords, {name for one in types for name in _KEYWORDS[one]})
        if not types:
            raise UserError(f"{path} admits any value, of any depth: give it a type")
        for name, value in keywords.items():
            if name in _SHAPES and not isinstance(value, _SHAPES[name]):
                raise UserError(f"{path}.{name}: {value!r} is no {_SHAPES[name].__name__}")
        return _either(self._typed(name, keywords, path, references) for name in types)

    def _typed(
        self, name: str, keywords: Mapping[str, Any], path: str, references: tuple[str, ...]
    ) -> str:
        match name:
            case "object":
                return self._object(keywords, path, references)
            case "array":
                return self._array(keywords, path, references)
            case "string":
                return f'"{_string(keywords, path)}"'
            case "boolean":
                return "(?:true|false)"
            case "null":
                return "null"
        if keywords.get("minimum", 0) != 0:
            raise UserError(f"{path}.minimum cannot be enforced unless it is 0: remove it")
        return ("" if "minimum" in keywords else "-?") + (
            _INTEGER if name == "integer" else _NUMBER
        )

    def _object(self, keywords: Mapping[str, Any], path: str, references: tuple[str, ...]) -> str:
        others = keywords.get("additionalProperties")
        if "properties" not in keywords and isinstance(others, Mapping):
            _only(path, keywords, {"additionalProperties"})
            value = self.regex(others, f"{path}.additionalProperties", references)
            member = f'"{_CHARACTER}*"{_COLON}{value}'
            return rf"\{{{_repeated(member, 0, None)}\}}"
        if "properties" not in keywords and others is not False:
            raise UserError(
                f"{path} admits any object, of any depth: give its properties, or the schema of "
                "all values as additionalProperties"
            )
        properties = keywords.get("properties", {})
        required = keywords.get("required", [])
        missing = [name for name in required if name not in properties]
        if missing:
            raise UserError(
                f"{path}.required: {missing[0]!r} is not among the properties: add its schema"
            )
        members = []
        for name, schema in properties.items():
            value = self.regex(schema, f"{path}.properties.{name}", references)
            members.append(f"{escaped(_text(name))}{_COLON}{value}")
        needed = [i for i, name in enumerate(properties) if name in required]
        # Commas follow what precedes a property that is certain to come, and precede the others.
        if needed:
            return rf"\{{{_around(members, needed[-1], needed)}\}}"
        by_last = (_around(members[: i + 1], i, [i]) for i in range(len(members)))
        return rf"\{{{_either(by_last)}?\}}" if members else r"\{\}"

    def _array(self, keywords: Mapping[str, Any], path: str, references: tuple[str, ...]) -> str:
        least, most = _bounds(keywords, "minItems", "maxItems", path)
        if "prefixItems" in keywords:
            items = [
                self.regex(item, f"{path}.prefixItems[{i}]", references)
                for i, item in enumerate(keywords["prefixItems"])
            ]
            if not least <= len(items) <= (len(items) if most is None else most):
                raise UserError(
                    f"{path}.prefixItems: outputs have exactly these {len(items)} items, which "
                    "minItems and maxItems forbid: change them"
                )
            return rf"\[{_COMMA.join(items)}\]"
        if most == 0:
            return r"\[\]"
        if "items" not in keywords:
            raise UserError(f"{path} admits any items, of any depth: give their schema as items")
        item = self.regex(keywords["items"], f"{path}.items", references)
        return rf"\[{_repeated(item, least, most)}\]"

    def _any_of(self, branches: Any, path: str, references: tuple[str, ...]) -> str:
        if not isinstance(branches, Sequence) or not branches:
            raise UserError(f"{path} is no list of schemas: give at least one")
        return _either(
            self.regex(branch, f"{path}[{i}]", references) for i, branch in enumerate(branches)
        )

    def _target(self, reference: Any, path: str) -> Any:
        base, _, pointer = str(reference).partition("#")
        target = self.root
        try:
            for part in pointer.split("/")[1:]:
                key = unquote(part).replace("~1", "/").replace("~0", "~")
                target = target[int(key) if isinstance(target, list) else key]
        except (KeyError, IndexError, ValueError, TypeError):
            base = reference
        if base or (pointer and not pointer.startswith("/")):
            raise UserError(f"{path}: {reference!r} refers to nothing in this schema")
        return target


def _values(values: Sequence[Any], path: str, others: Mapping[str, Any]) -> str:
    _only(path, others, {"type"})
    types = others.get("type", list(_TYPES))
    for value in values:
        if not any(_is(value, name) for name in ([types] if isinstance(types, str) else types)):
            raise UserError(f"{path}: {value!r} is not of the type {types}: remove one of the two")
    return _either(map(_exactly, values))


def _exactly(value: Any) -> str:
    """A pattern of this one value."""
    if isinstance(value, Mapping):
        members = (f"{escaped(_text(name))}{_COLON}{_exactly(own)}" for name, own in value.items())
        return rf"\{{{_COMMA.join(members)}\}}"
    if isinstance(value, list):
        return rf"\[{_COMMA.join(map(_exactly, value))}\]"
    return escaped(_text(value))


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES.get(name, ()))


def _string(keywords: Mapping[str, Any], path: str) -> str:
    lengths = keywords.keys() & {"minLength", "maxLength"}
    if len(keywords.keys() & {"pattern", "format"}) + bool(lengths) > 1:
        raise UserError(
            f"{path}: of pattern, format and minLength with maxLength only one can be enforced: "
            "remove the others"
        )
    if "pattern" in keywords:
        where, pattern = f"{path}.pattern", keywords["pattern"]
        try:
            used = byte_automaton(pattern).bytes_used()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if any(byte < 0x20 or byte in b'"\\' for byte in used):
            raise UserError(
                f"{where}: {pattern!r} matches quotes, backslashes or control characters, which "
                r"JSON cannot hold as they are: exclude them, as [^\"\\\x00-\x1f] does"
            )
        return f"(?:{without_anchors(pattern)})"
    if "format" in keywords:
        if str(keywords["format"]) not in _FORMATS:
            raise UserError(
                f"{path}.format: {keywords['format']!r} cannot be enforced. "
                f"{', '.join(_FORMATS)} can: give a pattern instead"
            )
        return _FORMATS[keywords["format"]]
    least, most = _bounds(keywords, "minLength", "maxLength", path)
    return f"{_CHARACTER}{{{least},{'' if most is None else most}}}"


def _bounds(keywords: Mapping[str, Any], low: str, high: str, path: str) -> tuple[int, int | None]:
    least, most = keywords.get(low, 0), keywords.get(high)
    for name, bound in ((low, least), (high, least if most is None else most)):
        if not isinstance(bound, int) or isinstance(bound, bool) or bound < 0:
            raise UserError(f"{path}.{name}: {bound!r} is no number of 0 or more")
    if most is not None and least > most:
        raise UserError(f"{path}: {low} is {least}, and {high} only {most}: raise {high}")
    return least, most


def _only(path: str, keywords: Iterable[str], enforced: Iterable[str]) -> None:
    others = sorted(set(keywords) - set(enforced))
    if others:
        raise UserError(
            f"{path}.{others[0]} cannot be enforced here, so outputs might contradict it: "
            "remove it, and check outputs for it yourself"
        )


def _around(members: Sequence[str], certain: int, needed: Sequence[int]) -> str:
    """Members with commas, those that are not needed optional; `certain` is one that is."""
    parts = []
    for i, member in enumerate(members):
        before, after = _COMMA * (i > certain), _COMMA * (i < certain)
        part = f"{before}{member}{after}"
        parts.append(part if i in needed else f"(?:{part})?")
    return "".join(parts)


def _repeated(item: str, least: int, most: int | None) -> str:
    """At most and at least so many items with commas between them; most is not 0."""
    others = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    some = f"(?:{item}(?:{_COMMA}{item}){others})"
    return some if least else f"{some}?"


def _either(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(patterns)})"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
