"""Greedy decoding of every prompt of every document, with a cache and an early end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax import prompt_in_decoder
from pid_jax.models.protocol import EncoderDecoder, KeyValue, Params, Past


class Decoded(NamedTuple):
    """The chosen tokens of each prompt."""

    tokens: Int[Array, "B P T"]
    lengths: Int[Array, "B P"]
    """How many of `tokens` were chosen, the end token among them; the rest is padding."""
    scores: Float[Array, "B P"]
    """The sum of the chosen tokens' log-probabilities, the end token's included."""


class _Progress(NamedTuple):
    step: Int[Array, ""]
    """Tokens chosen so far, in rows that have not ended."""
    last: Int[Array, "B P"]
    ended: Bool[Array, "B P"]
    chosen: Decoded
    cache: tuple[KeyValue, ...]
    """Per layer `[B, P, H, M, K]`: the prompt's slots, then one for each token fed back."""


def greedy(
    model: EncoderDecoder,
    params: Params,
    documents: Int[Array, "B S"],
    document_mask: Bool[Array, "B S"],
    prompts: Int[Array, "B P L"],
    prompt_mask: Bool[Array, "B P L"],
    active: Bool[Array, "B P"],
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
) -> Decoded:
    """Chooses the likeliest token at every step until each active prompt has ended.

    prompts: left-padded, the start token first. active: False for the empty places of a
    ragged batch, which are not waited for and come back with length 0. min_new_tokens: the
    end token is barred until so many others were chosen.
    """
    config = model.config
    prompt_length = prompts.shape[2]
    encoded = prompt_in_decoder.encode(model, params, documents, document_mask)
    prompt_positions = prompt_in_decoder.positions_of(prompt_mask)

    def choose(progress: _Progress, hidden: Float[Array, "B P D"]) -> _Progress:
        logits = model.apply({"params": params}, hidden, method="logits")
        step, _, ended, chosen, cache = progress
        is_end = jnp.arange(logits.shape[-1]) == config.eos_token_id
        allowed = jnp.where(is_end & (step < min_new_tokens), -jnp.inf, logits)
        best = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
        token = jnp.where(ended, config.pad_token_id, best)
        score = jnp.max(allowed, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
        chosen = Decoded(
            tokens=jax.lax.dynamic_update_index_in_dim(chosen.tokens, token, step, axis=2),
            lengths=chosen.lengths + ~ended,
            scores=chosen.scores + jnp.where(ended, 0.0, score),
        )
        return _Progress(step + 1, token, ended | (token == config.eos_token_id), chosen, cache)

    def advance(progress: _Progress) -> _Progress:
        slot = prompt_length + progress.step - 1
        filled = jnp.arange(prompt_length, cache_length) < slot
        remembered = jnp.concatenate(
            [prompt_mask, jnp.broadcast_to(filled, (*active.shape, filled.size))], axis=-1
        )
        hidden, present = prompt_in_decoder.decode(
            model,
            params,
            encoded,
            progress.last[:, :, None],
            jnp.ones((*active.shape, 1), bool),
            prompt_positions[:, :, -1:] + progress.step,
            slot,
            Past(progress.cache, remembered),
        )
        cache = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=3),
            progress.cache,
            present,
        )
        return choose(progress._replace(cache=cache), hidden[:, :, -1])

    # The last token chosen is never fed back, so it needs no slot.
    cache_length = prompt_length + max_new_tokens - 1
    hidden, prompt_cache = prompt_in_decoder.decode(
        model, params, encoded, prompts, prompt_mask, prompt_positions, 0
    )
    room = [(0, 0), (0, 0), (0, 0), (0, max_new_tokens - 1), (0, 0)]
    start = _Progress(
        step=jnp.int32(0),
        last=prompts[:, :, -1],
        ended=~active,
        chosen=Decoded(
            tokens=jnp.full((*active.shape, max_new_tokens), config.pad_token_id, jnp.int32),
            lengths=jnp.zeros(active.shape, jnp.int32),
            scores=jnp.zeros(active.shape, jnp.float32),
        ),
        cache=jax.tree.map(lambda layer: jnp.pad(layer, room), prompt_cache),
    )
    finish = jax.lax.while_loop(
        lambda progress: (progress.step < max_new_tokens) & ~progress.ended.all(),
        advance,
        choose(start, hidden[:, :, -1]),
    )
    return finish.chosen
