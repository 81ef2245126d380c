"""Copy drafting: guesses of what comes next, read off the document.

Answers, summaries and dialogue states repeat their document. Where the last tokens of an output
stand somewhere in it, what follows them there is a guess at the next tokens; the decoder checks
all guesses in one call, and those that it would have chosen itself are kept. That is speculative
decoding (Leviathan et al., arXiv 2211.17192) with the input as the draft model, known as prompt
lookup decoding and, for edits, from Yang et al., "Inference with Reference", arXiv 2304.04487.
The tokens are those of greedy decoding; only the number of calls changes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import Arr
from pid_jax.decoding import barring, constraints, rules, token_logprobs
from pid_jax.decoding.choosing import after_stops, rule_by_place
from pid_jax.decoding.options import Controls, Strategy
from pid_jax.decoding.state import Chosen, Prompts, State
from pid_jax.decoding.token_logprobs import TokenLogprobs
from pid_jax.models.protocol import EncoderDecoder, KeyValue, Params, Past, end_token_ids
from pid_jax.prompt_in_decoder import EncodedDocuments


def draft(
    documents: Int[Arr, "B S"],
    document_mask: Bool[Arr, "B S"],
    history: Int[Array, "B P W"],
    history_mask: Bool[Array, "B P W"],
    length: Int[Array, "B P"],
    count: int,
    ngram: int,
) -> tuple[Int[Array, "B P D"], Int[Array, "B P"]]:
    """The `count` tokens that follow the best match of each output's end in its document.

    history: prompt and output, of which the first `length` columns are filled. The best match
    is that of most tokens, up to `ngram`, and of those the first. Returns the drafts, arbitrary
    where nothing matches or the document ends, and how many of them were read off the document.
    """
    size = documents.shape[1]
    matched = jnp.zeros((*length.shape, size), jnp.int32)
    going_on = jnp.broadcast_to(document_mask[:, None], matched.shape)
    shifted = documents
    for i in range(ngram):
        column = length[..., None] - 1 - i
        token = jnp.take_along_axis(history, jnp.maximum(column, 0), axis=-1)
        real = jnp.take_along_axis(history_mask, jnp.maximum(column, 0), axis=-1) & (column >= 0)
        # shifted[s] is the document's token i places before s.
        going_on = going_on & real & (shifted[:, None] == token) & (jnp.arange(size) >= i)
        matched += going_on
        shifted = jnp.roll(shifted, 1, axis=-1)
    followed = jnp.concatenate(
        [document_mask[:, 1:], jnp.zeros_like(document_mask[:, :1])], axis=-1
    )
    matched = jnp.where(followed[:, None], matched, 0)
    best = matched.argmax(axis=-1)
    places = best[..., None] + 1 + jnp.arange(count)
    inside = jnp.minimum(places, size - 1)
    tokens = jnp.take_along_axis(documents[:, None], inside, axis=-1)
    exists = (places < size) & jnp.take_along_axis(document_mask[:, None], inside, axis=-1)
    exists &= (matched.max(axis=-1) > 0)[..., None]
    return tokens, exists.sum(axis=-1, dtype=jnp.int32)


def verify(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    state: State,
    controls: Controls,
    strategy: Strategy,
) -> State:
    """Guesses tokens from the document and keeps those that greedy decoding would have chosen.

    Of D guesses the decoder reads D + 1 tokens, the last one chosen before them, and greedy
    decoding chooses one after each. Those choices count that follow right guesses only.
    """
    step, prompts = state
    chosen = prompts.outputs
    assert isinstance(chosen, Chosen)
    drafts, found = _guess(encoded, prompts, chosen, strategy)
    read = jnp.concatenate([prompts.last, drafts], axis=-1)
    next_logits, cache = _read(model, params, encoded, prompts, chosen, read)
    nodes = _nodes_along(prompts.node, drafts, controls)
    places = chosen.lengths[..., None] + jnp.arange(read.shape[-1])
    tokens = _greedy(model, next_logits, prompts, drafts, places, nodes, controls)
    right = jnp.cumprod(tokens[..., :-1] == drafts, axis=-1, dtype=jnp.int32)
    right = right.sum(axis=-1, dtype=jnp.int32)

    stop_states = _stop_states_along(prompts, tokens, controls)
    ends = rules.is_one_of(tokens, end_token_ids(model.config))
    ends |= places + 1 >= controls.max_new_tokens
    if controls.stops is not None and stop_states is not None:
        ends |= controls.stops.stopped(stop_states[..., 1:])
    ended_before = jnp.cumsum(ends, axis=-1) - ends > 0
    counts = (jnp.arange(read.shape[-1]) <= right[..., None]) & ~ended_before
    counts &= ~chosen.done[..., None]
    count = counts.sum(axis=-1, dtype=jnp.int32)

    last_one = jnp.maximum(count - 1, 0)
    last = _at(tokens, last_one)
    node = prompts.node
    if controls.forest is not None and nodes is not None:
        node = constraints.next_node(controls.forest, _at(nodes, last_one), last)
    log_probabilities = prompt_in_decoder.token_log_probabilities(next_logits, tokens)
    logprobs = chosen.logprobs
    if logprobs is not None:
        top, top_tokens = (
            jnp.moveaxis(leaf, -1, -2)
            for leaf in token_logprobs.likeliest(next_logits, logprobs.top.shape[-2])
        )
        logprobs = TokenLogprobs(
            _written(logprobs.chosen, log_probabilities, chosen.lengths, count),
            _written(logprobs.top, top, chosen.lengths[..., None], count[..., None]),
            _written(logprobs.top_tokens, top_tokens, chosen.lengths[..., None], count[..., None]),
        )
    return State(
        step + 1,
        prompts._replace(
            last=last,
            node=node,
            stop_state=None if stop_states is None else _at(stop_states, count),
            cache=cache,
            outputs=Chosen(
                tokens=_written(chosen.tokens, tokens, chosen.lengths, count),
                lengths=chosen.lengths + count,
                scores=chosen.scores + jnp.where(counts, log_probabilities, 0.0).sum(axis=-1),
                done=chosen.done | (ends & counts).any(axis=-1),
                drafted=chosen.drafted + jnp.where(chosen.done, 0, found),
                # What follows them may be right too, by chance: it was not read off the document.
                accepted=chosen.accepted + jnp.minimum(jnp.minimum(right, count), found),
                logprobs=logprobs,
            ),
        ),
    )


def _guess(
    encoded: EncodedDocuments, prompts: Prompts, chosen: Chosen, strategy: Strategy
) -> tuple[Int[Array, "B P D"], Int[Array, "B P"]]:
    return draft(
        encoded.tokens,
        encoded.mask,
        jnp.concatenate([prompts.tokens, chosen.tokens], axis=-1),
        jnp.concatenate([prompts.mask, jnp.ones_like(chosen.tokens, bool)], axis=-1),
        prompts.tokens.shape[2] + chosen.lengths,
        strategy.draft_tokens,
        strategy.draft_ngram,
    )


def _read(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    prompts: Prompts,
    chosen: Chosen,
    tokens: Int[Array, "B P D1"],
) -> tuple[Float[Array, "B P D1 V"], tuple[KeyValue, ...]]:
    """Runs the decoder on these tokens of every prompt: logits, and the cache with them in it.

    Outputs grow at different rates, so every prompt has slots of its own for its next tokens.
    """
    length, count = prompts.tokens.shape[2], tokens.shape[-1]
    first = length + chosen.lengths[..., None] - 1
    slots = first + jnp.arange(count)
    past = Past(jax.tree.map(lambda layer: layer[:, :, 0], prompts.cache), prompts.filled(first))
    positions = prompt_in_decoder.positions_of(prompts.mask)[:, :, -1:] + slots - length + 1
    hidden, present = prompt_in_decoder.decode(
        model, params, encoded, tokens, jnp.ones_like(tokens, bool), positions, slots, past
    )

    def write(
        old: Float[Array, "B P 1 H width M"], new: Float[Array, "B P H width D1"]
    ) -> Float[Array, "B P 1 H width M"]:
        start, all_of_them = first[..., 0, None, None], jnp.int32(count)
        return _written(old[:, :, 0], new, start, all_of_them)[:, :, None]

    cache = jax.tree.map(write, prompts.cache, present)
    return model.apply({"params": params}, hidden, method="logits"), cache


def _greedy(
    model: EncoderDecoder,
    logits: Float[Array, "B P D1 V"],
    prompts: Prompts,
    drafts: Int[Array, "B P D"],
    places: Int[Array, "B P D1"],
    nodes: Int[Array, "B P D1"] | None,
    controls: Controls,
) -> Int[Array, "B P D1"]:
    """What plain greedy decoding chooses from these logits, at these places of the output."""
    ruled = logits
    if controls.words is not None:
        history, mask = _history_with(prompts, drafts)
        rows = (*logits.shape[:3], history.shape[-1])
        ruled = barring.bar_words(
            ruled,
            jnp.broadcast_to(history[:, :, None], rows),
            jnp.broadcast_to(mask[:, :, None], rows),
            prompts.tokens.shape[2] + places,
            controls.words,
        )
    ruled = rule_by_place(model.config, prompts, ruled, places, controls)
    if controls.forest is not None and nodes is not None:
        ruled = constraints.constrain(ruled, logits, controls.forest, nodes)
    return rules.likeliest(ruled)


def _history_with(
    prompts: Prompts, drafts: Int[Array, "B P D"]
) -> tuple[Int[Array, "B P W"], Bool[Array, "B P W"]]:
    """Prompt, output and these drafts, as if all of them were right."""
    chosen = prompts.outputs
    assert isinstance(chosen, Chosen)
    room = jnp.zeros(drafts.shape, chosen.tokens.dtype)
    tokens = jnp.concatenate([chosen.tokens, room], axis=-1)
    tokens = _written(tokens, drafts, chosen.lengths, jnp.int32(drafts.shape[-1]))
    mask = jnp.concatenate([prompts.mask, jnp.ones_like(tokens, bool)], axis=-1)
    return jnp.concatenate([prompts.tokens, tokens], axis=-1), mask


def _nodes_along(
    node: Int[Array, "B P 1"] | None, tokens: Int[Array, "B P D"], controls: Controls
) -> Int[Array, "B P D1"] | None:
    """Where the forest of allowed outputs stands before these tokens and after each."""
    if controls.forest is None or node is None:
        return None
    nodes = [node[..., 0]]
    for i in range(tokens.shape[-1]):
        nodes.append(constraints.next_node(controls.forest, nodes[-1], tokens[..., i]))
    return jnp.stack(nodes, axis=-1)


def _stop_states_along(
    prompts: Prompts, tokens: Int[Array, "B P D1"], controls: Controls
) -> Int[Array, "B P D2"] | None:
    """Where the automaton of stop sequences stands before these tokens and after each."""
    if controls.stops is None or prompts.stop_state is None:
        return None
    node = None if prompts.node is None else prompts.node[..., 0]
    states = [prompts.stop_state[..., 0]]
    for i in range(tokens.shape[-1]):
        states.append(after_stops(controls.stops, states[-1], tokens[..., i], node))
    return jnp.stack(states, axis=-1)


def _at(values: Int[Array, "B P N"], index: Int[Array, "B P"]) -> Int[Array, "B P 1"]:
    return jnp.take_along_axis(values, index[..., None], axis=-1)


def _written(
    old: Shaped[Array, "*rows M"],
    new: Shaped[Array, "*rows N"],
    start: Int[Array, "*#rows"],
    count: Int[Array, "*#rows"],
) -> Shaped[Array, "*rows M"]:
    """`old` with the first `count` columns of `new` from column `start` on; the rest is left."""
    place = jnp.arange(old.shape[-1]) - start[..., None]
    inside = (place >= 0) & (place < count[..., None])
    index = jnp.clip(place, 0, new.shape[-1] - 1)
    return jnp.where(inside, jnp.take_along_axis(new, index, axis=-1), old)
