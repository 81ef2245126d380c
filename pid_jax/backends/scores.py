"""What happens to attention scores between the product and the softmax."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED_SCORE = -1e9
"""Stands for minus infinity, yet a row in which everything is masked has no NaN."""


def adjusted(
    scores: Float[Array, "*batch L S"],
    scale: float,
    soft_cap: float | None,
    bias: Float[Array, "*#batch L S"] | None,
    mask: Bool[Array, "*#batch #L S"] | None,
) -> Float[Array, "*batch L S"]:
    """Scores after scaling, soft-capping, adding a bias and masking, in this order.

    mask: False for keys that a query may not see.
    """
    if scale != 1.0:
        scores = scores * scale
    if soft_cap is not None:
        scores = capped(scores, soft_cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED_SCORE)
    return scores


def capped(x: Float[Array, "*any"], bound: float) -> Float[Array, "*any"]:
    """Soft-capping: bends what comes near to `bound`, so that nothing passes it."""
    return jnp.tanh(x / bound) * bound


def within(reach: tuple[int, int], distance: Int[Array, "*any"]) -> Bool[Array, "*any"]:
    """Whether a query sees a key at this distance: at most so far before it, and so far after."""
    return (distance >= -reach[0]) & (distance <= reach[1])
