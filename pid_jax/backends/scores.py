"""Operations on attention scores between the product and the softmax."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED_SCORE = -1e9
"""Used instead of minus infinity, so that a row that is masked entirely has no NaN."""


def adjust_scores(
    scores: Float[Array, "*batch L S"],
    scale: float,
    bound: float | None,
    bias: Float[Array, "*#batch L S"] | None,
    mask: Bool[Array, "*#batch #L S"] | None,
) -> Float[Array, "*batch L S"]:
    """Scales the scores, caps them softly, adds a bias and applies a mask, in this order.

    bound: of `soft_cap`, None for no cap. mask: False for keys that a query may not see.
    """
    if scale != 1.0:
        scores = scores * scale
    if bound is not None:
        scores = soft_cap(scores, bound)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED_SCORE)
    return scores


def soft_cap(x: Float[Array, "*any"], bound: float) -> Float[Array, "*any"]:
    """`bound * tanh(x / bound)`: close to x where x is small, and always within the bound."""
    return jnp.tanh(x / bound) * bound


def is_within(reach: tuple[int, int], distance: Int[Array, "*any"]) -> Bool[Array, "*any"]:
    """Whether a query sees a key at this distance.

    reach: the largest distances before and after the query. distance: key position minus query
    position.
    """
    return (distance >= -reach[0]) & (distance <= reach[1])
