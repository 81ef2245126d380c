"""Dropout of attention weights, drawn where the weights are computed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class AttentionDropout(NamedTuple):
    """Dropout of the softmax's output, in training."""

    key: Any
    """`Key[""]`. None if `rate` is 0."""
    rate: float
    same_for_queries: bool
    """Whether all queries lose the same keys, as in T5. In blocks of queries: those of a block."""

    def remains(self, shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """True for the weights that remain. shape: of the weights, queries by keys at the end.

        The result has a single query if all queries lose the same keys.
        """
        if self.same_for_queries:
            shape = (*shape[:-2], 1, shape[-1])
        if not self.rate:
            return jnp.ones(shape, bool)
        return jax.random.bernoulli(self.key, 1 - self.rate, shape)

    def multipliers(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """What the weights are multiplied by: 0 or 1 / (1 - rate). For arguments, see `remains`.

        If all queries lose the same keys, multiplying the values has the same result as
        multiplying the weights.
        """
        return jnp.where(self.remains(shape), 1 / (1 - self.rate), 0.0)

    def apply(self, weights: Float[Array, "*batch L S"]) -> Float[Array, "*batch L S"]:
        """The weights after dropout, with the numbers of `flax.linen.Dropout`."""
        if not self.rate:
            return weights
        return jnp.where(self.remains(weights.shape), weights / (1 - self.rate), 0)
