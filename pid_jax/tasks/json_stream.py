"""Incremental parser for one long JSON list or object.

MultiWOZ is one JSON object of hundreds of megabytes. The standard parser would convert it to
gigabytes of Python objects at once.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from pid_jax.errors import UserError
from pid_jax.tasks.fields import DECODER

_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_BYTES = 2**20


class JsonStream:
    """Reads `file` once. `where` is its name in messages. Raises UserError for invalid JSON."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file = file
        self._where = where
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = DECODER
        self._text = ""
        self._at = 0
        self._dropped = 0
        self._ended = False

    def elements(self) -> Iterator[Any]:
        """The elements of a list, in order."""
        self._open("[", "a list")
        yield from self._separated("]", self._value)

    def items(self) -> Iterator[tuple[str, Any]]:
        """The keys and values of an object, in order. Raises UserError for a repeated key."""
        self._open("{", "an object")
        keys: set[str] = set()
        for key, value in self._separated("}", self._item):
            if key in keys:
                raise UserError(f"{self._where}: the key {key!r} occurs twice")
            keys.add(key)
            yield key, value

    def _open(self, bracket: str, kind: str) -> None:
        if self._next_character() != bracket:
            raise UserError(f"{self._where}: expected {kind} {bracket}...")
        self._at += 1

    def _separated(self, bracket: str, one: Any) -> Iterator[Any]:
        """Calls `one` for each item, up to the closing bracket and the end of the file."""
        if self._next_character() == bracket:
            self._at += 1
        else:
            while True:
                yield one()
                separator = self._next_character()
                self._at += 1
                if separator == bracket:
                    break
                if separator != ",":
                    raise self._error(f"expected ',' or '{bracket}'", self._at - 1)
        if self._next_character():
            raise self._error("more after the end", self._at)

    def _item(self) -> tuple[str, Any]:
        start = self._at
        key = self._value()
        if not isinstance(key, str):
            raise self._error("expected a key in quotes", start)
        if self._next_character() != ":":
            raise self._error("expected ':'", self._at)
        self._at += 1
        return key, self._value()

    def _value(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                # A number at the end of the text may continue in the next piece.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._error(str(error), self._at) from error
            self._read_more()

    def _next_character(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def _read_more(self) -> None:
        """Doubles the unparsed text, so that a long value is parsed only a few times."""
        rest = self._text[self._at :]
        piece = self._file.read(max(_FIRST_BYTES, len(rest)))
        self._ended = not piece
        self._dropped += self._at
        self._at = 0
        try:
            self._text = rest + self._utf8.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._where}: not UTF-8 somewhere after character {self._dropped}: save the "
                "file as UTF-8"
            ) from error

    def _error(self, what: str, position: int) -> UserError:
        return UserError(
            f"{self._where}: not JSON: {what} at character {self._dropped + position + 1}"
        )
