"""Where the parts of a JSON text stand, so that the parts which are not ours can be copied as is.

A number of more digits than a float has, one beyond its range, a key that comes twice: reading and
writing them again would change them.
"""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)  # only the ends matter
_SPACE = re.compile(r"[ \t\r\n]*")


class Span(NamedTuple):
    """text[start:end] is a value; `key` is its key in an object, at `begins` or later."""

    begins: int
    start: int
    end: int
    key: str = ""


def members(text: str, start: int) -> Iterator[Span]:
    """Those of the object that begins at `start`, in order. The text must be valid JSON."""
    yield from _parts(text, start, with_keys=True)


def elements(text: str, start: int) -> Iterator[Span]:
    """Those of the list that begins at `start`, in order. The text must be valid JSON."""
    yield from _parts(text, start, with_keys=False)


def begin(text: str, at: int = 0) -> int:
    """Where white space ends."""
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _parts(text: str, start: int, *, with_keys: bool) -> Iterator[Span]:
    at = begin(text, start + 1)
    while text[at] not in "}]":
        begins, key = at, ""
        if with_keys:
            key, at = _DECODER.raw_decode(text, at)
            at = begin(text, begin(text, at) + 1)  # a colon
        _, end = _DECODER.raw_decode(text, at)
        yield Span(begins, at, end, key)
        at = begin(text, end)
        if text[at] == ",":
            at = begin(text, at + 1)
