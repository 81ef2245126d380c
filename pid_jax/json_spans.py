"""Positions of values in JSON text, to copy values unchanged.

Parsing and writing again would change numbers beyond the precision or range of a float, and
repeated keys.
"""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)  # only the ends matter
_SPACE = re.compile(r"[ \t\r\n]*")


class Span(NamedTuple):
    """text[start:end] is a value. In an object, text[item_start:start] has its key and colon."""

    item_start: int
    start: int
    end: int
    key: str = ""


def members(text: str, start: int) -> Iterator[Span]:
    """The members of the object at `start`, in order. The text must be valid JSON."""
    yield from _parts(text, start, with_keys=True)


def elements(text: str, start: int) -> Iterator[Span]:
    """The elements of the list at `start`, in order. The text must be valid JSON."""
    yield from _parts(text, start, with_keys=False)


def skip_white_space(text: str, at: int = 0) -> int:
    """The index of the first character from `at` on that is not white space."""
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _parts(text: str, start: int, *, with_keys: bool) -> Iterator[Span]:
    at = skip_white_space(text, start + 1)
    while text[at] not in "}]":
        item_start, key = at, ""
        if with_keys:
            key, at = _DECODER.raw_decode(text, at)
            at = skip_white_space(text, skip_white_space(text, at) + 1)  # skips a colon
        _, end = _DECODER.raw_decode(text, at)
        yield Span(item_start, at, end, key)
        at = skip_white_space(text, end)
        if text[at] == ",":
            at = skip_white_space(text, at + 1)
