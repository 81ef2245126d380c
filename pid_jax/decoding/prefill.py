"""Prefill: the decoder reads all prompts, against documents that are encoded already."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import Arr
from pid_jax.decoding import token_logprobs
from pid_jax.decoding.automata import Position
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.state import LookupCounts, Prompts, State
from pid_jax.decoding.step import select_tokens
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.prompt_in_decoder import EncodedDocuments


def prefill(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    prompts: Int[Arr, "B P L"],
    prompt_mask: Bool[Arr, "B P L"],
    active: Bool[Arr, "B P"],
    max_new_tokens: Int[Arr, "B P"],
    start: Position,
    keys: UInt32[Arr, "B P 2"] | None,
    options: DecodingOptions,
    *,
    length: int,
) -> State:
    """Reads the prompts and selects the first token of each output.

    prompts: left-padded, the start token first. active: False for the absent prompts of a ragged
    batch, which count as finished. max_new_tokens: of each prompt, at most `length`, the size of
    the arrays for outputs. start: `[B, P]`, the position of each prompt in the automata of the
    options. keys: under sampling, the data of a threefry key for each prompt.
    """
    prompts, prompt_mask, active = map(jnp.asarray, (prompts, prompt_mask, active))
    config = model.config
    beams = options.search.beams
    shape = (*active.shape, beams)
    hidden, present = prompt_in_decoder.decode(
        model,
        params,
        encoded,
        prompts,
        prompt_mask,
        prompt_in_decoder.positions_of(prompt_mask),
        jnp.arange(prompts.shape[2])[None],
    )
    # The decoder never reads the last token of an output, so the cache has no slot for it.
    # Guesses of prompt lookup may exceed the length of the output.
    slots = length - 1 + (0 if options.lookup is None else options.lookup.draft_tokens)

    def of_every_beam(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf[:, :, None], (*shape, *leaf.shape[2:]))

    logprobs = None
    if options.logprobs is not None:
        top = min(options.logprobs, config.vocab_size)
        logprobs = token_logprobs.empty(shape, top, length)
    zeros = jnp.zeros(active.shape, jnp.int32)
    unread = Prompts(
        tokens=prompts,
        mask=prompt_mask,
        max_new_tokens=jnp.asarray(max_new_tokens, jnp.int32),
        last=jnp.broadcast_to(prompts[:, :, -1:], shape),
        sequences=options.search.start(active, length, config.pad_token_id, logprobs),
        position=options.automata.start(shape, start),
        key=None if keys is None else jnp.asarray(keys),
        lookup=None if options.lookup is None else LookupCounts(zeros, zeros),
        cache=jax.tree.map(of_every_beam, tuple(layer.pad(slots) for layer in present)),
    )
    # All beams of a prompt are the same so far: one row of logits represents them.
    logits = model.apply({"params": params}, hidden[:, :, -1:], method="logits")
    return select_tokens(model, encoded, State(jnp.int32(0), unread), logits, options)
