"""Detection of unusable weights: NaN, infinities, integer tensors."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

_AT_ONCE = 2**22  # numbers, which bounds the size of temporary arrays


def why_unusable(name: str, tensor: np.ndarray) -> str | None:
    """Why a tensor is unusable (NaN, infinity, no floating point), or None if it is usable.

    `final_logits_bias` may be -inf, which suppresses a token.
    """
    check = FiniteCheck(name)
    check.add(tensor)
    return check.problem()


class FiniteCheck:
    """`why_unusable` for a tensor that is read in parts. It stores the first wrong number only."""

    def __init__(self, name: str) -> None:
        """name: of the tensor, in messages."""
        self._name = name
        self._first: tuple[tuple[int, ...], float] | None = None
        self._integers: np.dtype | None = None

    def add(self, part: np.ndarray, start: Sequence[int] | None = None) -> None:
        """Checks a part of the tensor. start: its first index on each axis, None for zeros."""
        if not jnp.issubdtype(part.dtype, jnp.floating):
            self._integers = part.dtype
            return
        wrong = _first_wrong(part, may_be_minus_infinity=self._name.endswith("final_logits_bias"))
        if wrong is None:
            return
        of_part = np.unravel_index(wrong, part.shape)
        offset = start or (0,) * part.ndim
        index = tuple(int(i) + first for i, first in zip(of_part, offset, strict=True))
        if self._first is None or index < self._first[0]:
            self._first = index, float(part[of_part])

    def problem(self) -> str | None:
        """Why the tensor is unusable, with the first index in the whole tensor. None if usable."""
        if self._integers is not None:
            return (
                f"{self._name} is of type {self._integers}, not floating point: are the weights "
                "quantized?"
            )
        if self._first is None:
            return None
        index, value = self._first
        indices = ", ".join(map(str, index))
        return (
            f"{self._name} holds {value}, first at [{indices}]: use an earlier checkpoint or "
            "another copy"
        )


def _first_wrong(tensor: np.ndarray, *, may_be_minus_infinity: bool) -> int | None:
    """The flat index of the first number that is not finite."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        if _all_finite(part):
            continue
        wrong = ~np.isfinite(part.astype(np.float64))
        if may_be_minus_infinity:
            wrong &= part != -np.inf
        if wrong.any():
            return start + int(np.argmax(wrong))
    return None


def _all_finite(part: np.ndarray) -> bool:
    if part.dtype == jnp.bfloat16:  # ten times faster on the bits
        return bool(((part.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(part).all())
