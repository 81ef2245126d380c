"""Values that callers give, checked and made plain: each error names the argument."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from pid_jax.errors import UserError


def integer(name: str, value: Any, at_least: int | None = None) -> int:
    """An integer of any kind (NumPy's, a 0-d array, a JAX scalar) as an `int`.

    Raises `UserError` for anything else, 5.0 and booleans included, and below `at_least`.
    """
    number = _index(value)
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
    ids = tuple(_index(token) for token in _items(name, value, "token ids"))
    plain = tuple(token for token in ids if token is not None and token >= 0)
    if len(plain) < len(ids):
        raise UserError(f"{name} must be a list of token ids, not {value!r}")
    return plain


def token_lists(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A sequence of sequences of token ids, none empty. Raises `UserError` for anything else."""
    lists = _items(name, value, "lists of token ids")
    found = tuple(token_ids(f"{name}[{i}]", ids) for i, ids in enumerate(lists))
    if () in found:
        raise UserError(f"{name}[{found.index(())}] is empty: give token ids, or leave it out")
    return found


def texts_or_token_lists(name: str, value: Any) -> tuple[str | tuple[int, ...], ...]:
    """A sequence of texts and sequences of token ids. Raises `UserError` for anything else."""
    if isinstance(value, str):
        raise UserError(f"{name} must be a list of texts, not one text")
    items = _items(name, value, "texts and lists of token ids")
    return tuple(
        item if isinstance(item, str) else token_ids(f"{name}[{i}]", item)
        for i, item in enumerate(items)
    )


def _index(value: Any) -> int | None:
    """None for what is no integer."""
    if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "i") == "b":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _items(name: str, value: Any, of: str) -> Sequence[Any]:
    """What a list, a tuple or an array holds."""
    is_array = hasattr(value, "dtype") and np.ndim(value) > 0
    if not is_array and (isinstance(value, str | bytes) or not isinstance(value, Sequence)):
        raise UserError(f"{name} must be a list of {of}, not {value!r}")
    return list(np.asarray(value)) if is_array else value
