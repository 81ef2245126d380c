"""One token more for every output: logits in, the next state out, whatever the search."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.decoding.decoding_options import DecodingOptions, logits_context
from pid_jax.decoding.logits import is_one_of
from pid_jax.decoding.search import SearchStep
from pid_jax.decoding.state import State
from pid_jax.models.protocol import EncoderDecoder, end_token_ids
from pid_jax.prompt_in_decoder import EncodedDocuments


def select_tokens(
    model: EncoderDecoder,
    encoded: EncodedDocuments,
    state: State,
    logits: Float[Array, "B P R V"],
    options: DecodingOptions,
) -> State:
    """Adds a token to every output that has not finished.

    logits: those of the next token, float32. R is W, or 1 in the first step, in which all beams of
    a prompt are the same.
    """
    step, prompts = state
    end_tokens = end_token_ids(model.config)
    rows = logits.shape[2]
    position = jax.tree.map(lambda leaf: leaf[:, :, :rows], prompts.position)
    context = logits_context(
        prompts,
        prompts.sequences.tokens.reshape(*prompts.last.shape, -1)[:, :, :rows],
        step,
        position,
        (encoded.tokens, encoded.mask),
    )

    def process(scores: Float[Array, "B P R V"]) -> Float[Array, "B P R V"]:
        return options.process(scores, context(scores), position)

    def ends(parents: Int[Array, "B P C"], tokens: Int[Array, "B P C"]) -> Bool[Array, "B P C"]:
        before = jax.tree.map(
            lambda leaf: jnp.take_along_axis(leaf, parents, axis=2), prompts.position
        )
        stopped = options.automata.stopped(options.automata.after(before, tokens))
        return is_one_of(tokens, end_tokens) | stopped

    selection = options.search.select(
        prompts.sequences,
        logits,
        SearchStep(
            step=step,
            max_new_tokens=prompts.max_new_tokens,
            context=context,
            process=process,
            ends=ends,
            key=prompts.key,
            pad_token_id=model.config.pad_token_id,
            end_token_count=len(end_tokens),
        ),
    )
    position, cache = prompts.position, prompts.cache
    if selection.parents is not None:
        parents = selection.parents

        def of_parents(leaf: Array) -> Array:
            index = parents.reshape(*parents.shape, *[1] * (leaf.ndim - 3))
            return jnp.take_along_axis(leaf, index, axis=2)

        position, cache = jax.tree.map(of_parents, (position, cache))
    return State(
        step + 1,
        prompts._replace(
            last=selection.tokens,
            sequences=selection.sequences,
            position=options.automata.after(position, selection.tokens),
            cache=cache,
        ),
    )
