"""Validation of arguments: conversion to plain Python values, errors that name the argument."""

import math
from typing import Any

import numpy as np

from pid_jax.data import sequences
from pid_jax.errors import UserError


def integer(name: str, value: Any, at_least: int | None = None) -> int:
    """An integer of any type (NumPy integer, 0-d array, JAX scalar) as an `int`.

    Raises `UserError` for other values, including 5.0 and booleans, and below `at_least`.
    """
    number = sequences.whole_number(value)
    if number is None:
        raise UserError(f"{name} must be a whole number, not {value!r}")
    if at_least is not None and number < at_least:
        raise UserError(f"{name} must be at least {at_least}, not {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number of any type as a `float`, including NaN and infinities.

    Raises `UserError` for other values, including texts and booleans.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    # JAX's small floating-point types, such as bfloat16, have the kind "V".
    if not isinstance(value, bool | str | bytes) and kind in "iufV" and np.ndim(value) == 0:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):
            pass
    raise UserError(f"{name} must be a number, not {value!r}")


def flag(name: str, value: Any) -> bool:
    """A boolean, also NumPy's. Raises `UserError` for other values, including 0 and 1."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """A sequence of token ids as a tuple of `int`. Raises `UserError` for other values."""
    ids = []
    for k, token in enumerate(sequences.items(value, name, "a list of token ids")):
        number = sequences.whole_number(token)
        if number is None or number < 0:
            raise UserError(f"{name}[{k}] must be a token id, not {sequences.kind(token)}")
        ids.append(number)
    return tuple(ids)


def token_lists(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """Non-empty sequences of token ids as tuples. Raises `UserError` for other values."""
    lists = sequences.items(value, name, "a list of lists of token ids")
    result = tuple(token_ids(f"{name}[{i}]", ids) for i, ids in enumerate(lists))
    if () in result:
        raise UserError(f"{name}[{result.index(())}] is empty: give token ids, or leave it out")
    return result
