"""Greedy decoding as one pure function, for programs of a user."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.data.batching import Arr
from pid_jax.decoding.automata import Position
from pid_jax.decoding.decode import decode
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.prefill import prefill
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.prompt_in_decoder import EncodedDocuments


class GreedyOutputs(NamedTuple):
    """One output of each prompt."""

    tokens: Int[Array, "B P T"]
    """Padded after `lengths`."""
    lengths: Int[Array, "B P"]
    """The number of tokens, the end token included."""
    scores: Float[Array, "B P"]
    """The sum of their log-probabilities."""


def decode_greedily(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    prompts: Int[Arr, "B P L"],
    prompt_mask: Bool[Arr, "B P L"],
    max_new_tokens: int,
) -> GreedyOutputs:
    """Decodes every prompt against one encoding of its document, until all outputs have ended.

    Without logits processors: tokens that a configuration forces, such as BART's first, are not
    forced here. A pure function: call it under `jax.jit` with `model` and `max_new_tokens` static.
    encoded: of `prompt_in_decoder.encode`. prompts: left-padded, the decoder start token first, as
    `pid_jax.data.batching.collate` makes them. max_new_tokens: the length T of an output that does
    not end, at least 1.
    """
    active = jnp.ones(prompts.shape[:2], bool)
    limits = jnp.full(prompts.shape[:2], max_new_tokens, jnp.int32)
    options = DecodingOptions()
    state = prefill(
        model,
        params,
        encoded,
        prompts,
        prompt_mask,
        active,
        limits,
        Position(),
        None,
        options,
        length=max_new_tokens,
    )
    zero = jnp.int32(0)
    steps = jnp.int32(max_new_tokens)
    state = decode(model, params, encoded, state, options, steps, (zero, zero))
    tokens, lengths, scores, *_ = state.prompts.sequences
    return GreedyOutputs(tokens, lengths, scores)
