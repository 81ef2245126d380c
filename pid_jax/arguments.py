"""Values that callers give, checked and made plain: each error names the argument."""

import math
from typing import Any

import numpy as np

from pid_jax.data import sequences
from pid_jax.errors import UserError


def integer(name: str, value: Any, at_least: int | None = None) -> int:
    """An integer of any kind (NumPy's, a 0-d array, a JAX scalar) as an `int`.

    Raises `UserError` for anything else, 5.0 and booleans included, and below `at_least`.
    """
    number = sequences.whole_number(value)
    if number is None:
        raise UserError(f"{name} must be a whole number, not {value!r}")
    if at_least is not None and number < at_least:
        raise UserError(f"{name} must be at least {at_least}, not {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number of any kind as a `float`; NaN and infinities too.

    Raises `UserError` for texts, booleans and anything else.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    # JAX's own floats of few bits, bfloat16 say, have the kind "V".
    if not isinstance(value, bool | str | bytes) and kind in "iufV" and np.ndim(value) == 0:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):
            pass
    raise UserError(f"{name} must be a number, not {value!r}")


def flag(name: str, value: Any) -> bool:
    """True or False, NumPy's too. Raises `UserError` for anything else, 0 and 1 included."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """A sequence of token ids, of any kind of integer. Raises `UserError` for anything else."""
    ids = []
    for k, token in enumerate(sequences.items(value, name, "a list of token ids")):
        number = sequences.whole_number(token)
        if number is None or number < 0:
            raise UserError(f"{name}[{k}] must be a token id, not {sequences.kind(token)}")
        ids.append(number)
    return tuple(ids)


def token_lists(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A sequence of sequences of token ids, none empty. Raises `UserError` for anything else."""
    lists = sequences.items(value, name, "a list of lists of token ids")
    found = tuple(token_ids(f"{name}[{i}]", ids) for i, ids in enumerate(lists))
    if () in found:
        raise UserError(f"{name}[{found.index(())}] is empty: give token ids, or leave it out")
    return found
