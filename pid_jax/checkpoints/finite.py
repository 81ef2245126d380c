"""Detection of unusable weights: NaN, infinities, integer tensors."""

import jax.numpy as jnp
import numpy as np

_AT_ONCE = 2**22  # numbers, which bounds the size of temporary arrays


def why_unusable(name: str, tensor: np.ndarray) -> str | None:
    """Why a tensor is unusable (NaN, infinity, no floating point), or None if it is usable.

    `final_logits_bias` may be -inf, which suppresses a token.
    """
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return f"{name} is of type {tensor.dtype}, not floating point: are the weights quantized?"
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
        indices = ", ".join(str(index) for index in np.unravel_index(at, tensor.shape))
        return (
            f"{name} holds {float(flat[at])}, first at [{indices}]: use an earlier checkpoint or "
            "another copy"
        )
    return None


def _all_finite(part: np.ndarray) -> bool:
    if part.dtype == jnp.bfloat16:  # ten times faster on the bits
        return bool(((part.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(part).all())
