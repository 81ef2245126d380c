"""Sequences that callers pass: lists, tuples, arrays, pandas columns, generators.

Items are read in order of iteration, never by label. The functions recognise objects of pandas,
torch and JAX by their attributes, without importing these packages.
"""

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from pid_jax.errors import UserError

Text = str | Iterable[int]
"""Text, or token ids."""


def items(value: Any, where: str, expected: str) -> list[Any]:
    """The items in order. Raises `UserError` naming `where` and the type of another value.

    expected: a description of a valid value, for the message. Text and bytes are refused because
    they would be split into characters, sets because they have no order, mappings and data frames
    because they iterate over their keys.
    """
    if isinstance(value, list):
        return value
    unordered = isinstance(value, (str, bytes, bytearray, memoryview, Mapping, Set))
    if unordered or hasattr(value, "columns") or not isinstance(value, Iterable):
        raise UserError(f"{where} must be {expected}, not {kind(value)}")
    try:
        return list(value)
    except TypeError:  # an array without axes
        raise UserError(f"{where} must be {expected}, not {kind(value)}") from None


def text_or_ids(value: Any, where: str) -> str | list[int]:
    """Text as `str`, or token ids as a list of `int`.

    Raises `UserError` naming `where` and the type of another value, and for text with an unpaired
    surrogate, which no tokenizer reads.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where} has an unpaired surrogate, which is not a character"
            ) from None
        return str(value)  # converts NumPy's strings
    if type(value) is list and all(type(token) is int for token in value):
        return value
    tokens = items(value, where, "text or a list of token ids")
    return [_token_id(token, f"{where}[{k}]") for k, token in enumerate(tokens)]


def texts_or_ids(value: Any, where: str, expected: str) -> tuple[str | tuple[int, ...], ...]:
    """A list of texts and lists of token ids, each read by `text_or_ids`, as a hashable value."""
    read = (
        text_or_ids(item, f"{where}[{k}]") for k, item in enumerate(items(value, where, expected))
    )
    return tuple(item if isinstance(item, str) else tuple(item) for item in read)


def whole_number(value: Any) -> int | None:
    """The value as an `int`, or None if it is no integer. Accepts NumPy, JAX and torch."""
    if type(value) is int:
        return value
    if isinstance(value, (bool, np.bool_)) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def kind(value: Any) -> str:
    """The type of the value, for a message."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return "text"
    name = type(value).__name__
    name = f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"
    is_scalar = isinstance(value, (bool, int, float, complex, np.generic))
    return f"{name} ({value})" if is_scalar else name


def _token_id(value: Any, where: str) -> int:
    number = whole_number(value)
    if number is None:
        raise UserError(f"{where} must be a token id, a whole number, not {kind(value)}")
    return number


def is_collection(value: Any) -> bool:
    """Whether the value has items, as lists, arrays and generators do, and is no text."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return False
    return bool(getattr(value, "ndim", 1))
