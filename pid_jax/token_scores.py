"""Scores of target tokens under a model's head, with few logits in memory at once.

The logits of a batch, `[B, P, T, V]`, are the largest array of training: 2.3 GB in float32 for 8
documents with 12 prompts of 24 target tokens and 250,000 tokens in the vocabulary. `token_scores`
computes them in chunks, in the forward and the backward pass. It skips outputs that predict no
target token.

The fused loss of tokamax 0.0.12 has no chunks in memory either, but returns the loss alone, summed
or as a mean. Scores, label smoothing, the z-loss and accuracy need more of each token.

Letters beside those of `pid_jax.models.protocol`: R outputs of a group, C outputs of a chunk.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.models.protocol import EncoderDecoder, Params


class TokenScores(NamedTuple):
    """Of each target token. All are zero or False for an output that predicts none."""

    log_probability: Float[Array, "*rows"]
    """The logarithm of the softmax of the logits at the token, in nats."""
    normaliser: Float[Array, "*rows"]
    """The logarithm of the sum of the exponentials of the logits."""
    mean_logit: Float[Array, "*rows"]
    """The mean of the logits over the vocabulary."""
    is_highest: Bool[Array, "*rows"]
    """True if `argmax` of the logits is the token."""


def token_scores(
    model: EncoderDecoder,
    params: Params,
    hidden: Float[Array, "B R D"],
    tokens: Int[Array, "B R"],
    mask: Bool[Array, "B R"],
    logits_at_once: int,
) -> TokenScores:
    """The scores of `tokens`, which the head predicts from `hidden`.

    mask: True for outputs that predict a token. Others have no scores and no gradient.
    logits_at_once: the most logits that exist at once, but at least V.

    Without `mask`, all outputs need ceil(B * R * V / logits_at_once) chunks. The outputs of the
    mask are moved to the first chunks, and the loop over chunks ends after them. Outputs of
    different documents share a chunk, so that a mesh can split each chunk by documents. The
    backward pass computes the logits of a chunk again. It accumulates the gradients of the head
    in the dtype of its parameters.
    """
    params = model.head_params(params)
    rows = max(logits_at_once // model.config.vocab_size, 1)
    if tokens.size <= rows:
        scores = _scores(_logits(model, params, hidden), tokens)
        return jax.tree.map(lambda score: jnp.where(mask, score, 0).astype(score.dtype), scores)
    groups = next(n for n in range(min(rows, len(tokens)), 0, -1) if len(tokens) % n == 0)
    grouped = hidden.reshape(groups, -1, hidden.shape[-1])
    chunks = _chunks(mask.reshape(groups, -1), rows // groups)
    scores = _in_chunks(model, params, grouped, tokens.reshape(groups, -1), chunks)
    return jax.tree.map(lambda score: score.reshape(tokens.shape), scores)


def _logits(
    model: EncoderDecoder, params: Params, hidden: Float[Array, "*rows D"]
) -> Float[Array, "*rows V"]:
    return model.apply({"params": params}, hidden, method="logits")


@jax.custom_vjp
def _scores(logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows"]) -> TokenScores:
    """The scores of tokens. `argmax` itself is slow: a reduction of pairs."""
    of_tokens = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    earlier = (
        jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1) < tokens[..., None]
    )
    # The comparison is False for NaN, which `argmax` prefers to all numbers.
    higher = ~(logits <= of_tokens) | ((logits == of_tokens) & earlier)
    return TokenScores(
        of_tokens[..., 0] - normaliser,
        normaliser,
        logits.mean(axis=-1),
        # The sum is in float32 so that XLA computes all sums in one pass over the logits.
        jnp.where(higher, 1.0, 0.0).sum(axis=-1) == 0,
    )


def _gradient_of_logits(
    logits: Float[Array, "*rows V"],
    tokens: Int[Array, "*rows"],
    normaliser: Float[Array, "*rows"],
    gradients: TokenScores,
) -> Float[Array, "*rows V"]:
    """The gradient with respect to logits, from those with respect to the scores."""
    of_token, of_normaliser, of_mean, _ = (gradient[..., None] for gradient in gradients)
    probabilities = jnp.exp(logits - normaliser[..., None])
    is_token = (
        jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1) == tokens[..., None]
    )
    return (
        (of_normaliser - of_token) * probabilities
        + jnp.where(is_token, of_token, 0.0)
        + of_mean / logits.shape[-1]
    )


def _scores_forward(logits: Array, tokens: Array) -> tuple[TokenScores, Any]:
    scores = _scores(logits, tokens)
    return scores, (logits, tokens, scores.normaliser)


def _scores_backward(residuals: Any, gradients: TokenScores) -> tuple[Array, None]:
    logits, tokens, normaliser = residuals
    return _gradient_of_logits(logits, tokens, normaliser, gradients), None


_scores.defvjp(_scores_forward, _scores_backward)


class _Chunks(NamedTuple):
    """Chunks of the outputs of each group. Those of the mask come first."""

    order: Int[Array, "groups chunks*C"]
    """The outputs in the order of the chunks. Padding repeats output 0."""
    rank: Int[Array, "groups R"]
    """The index of each output in `order`."""
    used: Bool[Array, "groups chunks*C"]
    """True for outputs of the mask, in the order of the chunks."""
    size: int
    """C."""

    @property
    def needed(self) -> Int[Array, ""]:
        """The number of chunks with an output of the mask."""
        return -(-self.used.sum(axis=1, dtype=jnp.int32).max() // self.size)

    def select(self, x: Array, chunk: Int[Array, ""]) -> Array:
        """The entries of `x`, `[groups, R, ...]`, in a chunk."""
        indices = jax.lax.dynamic_slice_in_dim(self.order, chunk * self.size, self.size, axis=1)
        return jnp.take_along_axis(x, indices.reshape(*indices.shape, *[1] * (x.ndim - 2)), axis=1)

    def part(self, x: Array, chunk: Int[Array, ""]) -> Array:
        """The entries of `x`, `[groups, chunks * C, ...]`, in a chunk."""
        return jax.lax.dynamic_slice_in_dim(x, chunk * self.size, self.size, axis=1)

    def write(self, x: Array, entries: Array, chunk: Int[Array, ""]) -> Array:
        """`x`, `[groups, chunks * C, ...]`, with other entries in a chunk."""
        return jax.lax.dynamic_update_slice_in_dim(x, entries, chunk * self.size, axis=1)

    def restore(self, x: Array) -> Array:
        """The entries of `x`, `[groups, chunks * C, ...]`, in the order of the outputs."""
        indices = self.rank.reshape(*self.rank.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, indices, axis=1)


jax.tree_util.register_pytree_node(
    _Chunks, lambda c: ((c.order, c.rank, c.used), c.size), lambda size, xs: _Chunks(*xs, size)
)


def _chunks(mask: Bool[Array, "groups R"], most: int) -> _Chunks:
    """Chunks of at most `most` outputs of each group, of equal sizes, which minimise padding."""
    outputs = mask.shape[1]
    count = -(-outputs // most)
    size = -(-outputs // count)
    order = jnp.argsort(~mask, axis=1, stable=True)
    padding = ((0, 0), (0, count * size - outputs))
    used = jnp.take_along_axis(mask, order, axis=1)
    return _Chunks(
        jnp.pad(order, padding), jnp.argsort(order, axis=1), jnp.pad(used, padding), size
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_chunks(
    model: EncoderDecoder,
    params: Params,
    hidden: Float[Array, "groups R D"],
    tokens: Int[Array, "groups R"],
    chunks: _Chunks,
) -> TokenScores:
    """The scores of the outputs of the mask, chunk by chunk."""

    def add_chunk(chunk: Int[Array, ""], so_far: TokenScores) -> TokenScores:
        logits = _logits(model, params, chunks.select(hidden, chunk))
        scores = _scores(logits, chunks.select(tokens, chunk))
        used = chunks.part(chunks.used, chunk)
        return jax.tree.map(
            lambda x, new: chunks.write(x, jnp.where(used, new, 0).astype(x.dtype), chunk),
            so_far,
            scores,
        )

    zeros = jnp.zeros(chunks.order.shape, jnp.float32)
    start = TokenScores(zeros, zeros, zeros, zeros.astype(bool))
    return jax.tree.map(chunks.restore, jax.lax.fori_loop(0, chunks.needed, add_chunk, start))


def _in_chunks_forward(
    model: EncoderDecoder, params: Params, hidden: Array, tokens: Array, chunks: _Chunks
) -> tuple[TokenScores, Any]:
    scores = _in_chunks(model, params, hidden, tokens, chunks)
    return scores, (params, hidden, tokens, chunks, scores.normaliser)


def _in_chunks_backward(
    model: EncoderDecoder, residuals: Any, gradients: TokenScores
) -> tuple[Params, Array, None, None]:
    params, hidden, tokens, chunks, normaliser = residuals
    numbers = TokenScores(*gradients[:3], jnp.zeros_like(normaliser))

    def add_chunk(chunk: Int[Array, ""], so_far: tuple[Params, Array]) -> tuple[Params, Array]:
        used = chunks.part(chunks.used, chunk)
        of_scores = jax.tree.map(lambda x: jnp.where(used, chunks.select(x, chunk), 0.0), numbers)
        logits, pull_back = jax.vjp(
            functools.partial(_logits, model), params, chunks.select(hidden, chunk)
        )
        of_params, of_hidden = pull_back(
            _gradient_of_logits(
                logits, chunks.select(tokens, chunk), chunks.select(normaliser, chunk), of_scores
            )
        )
        added = jax.tree.map(jnp.add, so_far[0], of_params)
        return added, chunks.write(so_far[1], of_hidden, chunk)

    start = (
        jax.tree.map(jnp.zeros_like, params),
        jnp.zeros((*chunks.order.shape, hidden.shape[-1]), hidden.dtype),
    )
    of_params, of_hidden = jax.lax.fori_loop(0, chunks.needed, add_chunk, start)
    return of_params, chunks.restore(of_hidden), None, None


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)
