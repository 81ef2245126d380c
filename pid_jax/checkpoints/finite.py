"""Weights that no result can be computed with."""

import jax.numpy as jnp
import numpy as np

_AT_ONCE = 2**22  # numbers, so that no large array is made of any


def why_unusable(name: str, tensor: np.ndarray) -> str | None:
    """What is wrong with a tensor: NaN, infinity, or no floating point; None if nothing is.

    A bias of the logits may be -inf, which bars a token.
    """
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return f"{name} is of type {tensor.dtype}, not floating point: quantized weights, maybe?"
    flat = tensor.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        if _all_finite(part):
            continue
        wrong = ~np.isfinite(part.astype(np.float64))
        if name.endswith("final_logits_bias"):
            wrong &= part != -np.inf
        if not wrong.any():
            continue
        at = start + int(np.argmax(wrong))
        place = ", ".join(str(index) for index in np.unravel_index(at, tensor.shape))
        return (
            f"{name} holds {float(flat[at])}, first at [{place}]: take an earlier checkpoint, or "
            "another copy"
        )
    return None


def _all_finite(part: np.ndarray) -> bool:
    if part.dtype == jnp.bfloat16:  # by its bits, at a tenth of the time
        return bool(((part.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(part).all())
