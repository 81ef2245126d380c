"""Decoding: decode steps until every output has finished, or the batch can be compacted.

    encoded = prompt_in_decoder.encode(...)     each document once
    state = prefill(encoded, ...)               read the prompts, select a first token
    state = decode(encoded, state, ...)         select further tokens

Pure functions, each one compiled program. The keys and values of a document have no prompt axis,
so its beams read them as its prompts do.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax import prompt_in_decoder
from pid_jax.backends.cache_update import write_step
from pid_jax.data.batching import Arr
from pid_jax.decoding import prompt_lookup
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.state import Prompts, State
from pid_jax.decoding.step import select_tokens
from pid_jax.models.protocol import EncoderDecoder, Params, Past
from pid_jax.prompt_in_decoder import EncodedDocuments


def decode(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    state: State,
    options: DecodingOptions,
    max_steps: Int[Arr, ""],
    stop_at: tuple[Int[Arr, ""], Int[Arr, ""]],
) -> State:
    """Decodes until every output has finished, `max_steps` have run, or few outputs are active.

    max_steps: counted from the prefill, which is the first. stop_at: stop once no document has
    more active prompts than the second number, or no more documents than the first are active.
    """

    def continues(state: State) -> Bool[Array, ""]:
        active = ~options.search.finished(state.prompts.sequences)
        documents = active.any(axis=1).sum()
        prompts = active.sum(axis=1).max()
        some = (documents > stop_at[0]) & (prompts > stop_at[1])
        return some & (state.step < max_steps)

    def step(state: State) -> State:
        if options.lookup is not None:
            return prompt_lookup.decode_step(model, params, encoded, state, options)
        return decode_step(model, params, encoded, state, options)

    return jax.lax.while_loop(continues, step, state)


def decode_step(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    state: State,
    options: DecodingOptions,
) -> State:
    """Reads the last token of every output and selects the next."""
    logits, prompts = _read_last_tokens(model, params, encoded, state)
    return select_tokens(model, encoded, State(state.step, prompts), logits, options)


def _read_last_tokens(
    model: EncoderDecoder, params: Params, encoded: EncodedDocuments, state: State
) -> tuple[Float[Array, "B P W V"], Prompts]:
    """Runs the decoder on the last token of every beam: the next logits, and a longer cache."""
    step, prompts = state
    slot = prompts.tokens.shape[2] + step - 1
    rows = prompts.rows
    cache = jax.tree.map(lambda layer: layer.reshape(*rows, *layer.shape[3:]), prompts.cache)

    def of_every_beam(values: Array) -> Array:
        return jnp.repeat(values, prompts.last.shape[2], axis=1)

    hidden, present = prompt_in_decoder.decode(
        model,
        params,
        encoded,
        prompts.last.reshape(*rows, 1),
        jnp.ones((*rows, 1), bool),
        of_every_beam(prompt_in_decoder.positions_of(prompts.mask)[:, :, -1:] + step),
        slot[None, None],
        Past(cache, of_every_beam(prompts.filled(slot))),
    )
    cache = write_step(cache, present, slot)
    logits = model.apply({"params": params}, hidden[:, :, -1], method="logits")
    shape = prompts.last.shape
    cache = jax.tree.map(lambda layer: layer.reshape(*shape, *layer.shape[2:]), cache)
    return logits.reshape(*shape, -1), prompts._replace(cache=cache)
