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
from jaxtyping import Array, Bool, Float, Int

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import Arr
from pid_jax.decoding import constraints, rules
from pid_jax.decoding.choosing import after_stops
from pid_jax.decoding.options import Controls, Strategy
from pid_jax.decoding.state import Chosen, State
from pid_jax.models.protocol import EncoderDecoder, Params, Past
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
    return tokens, exists.sum(axis=-1)


def verify(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    state: State,
    controls: Controls,
    strategy: Strategy,
) -> State:
    """Guesses tokens from the document and keeps those that greedy decoding would have chosen.

    Outputs grow at different rates, so every prompt has slots of its own for its next tokens.
    """
    step, prompts = state
    chosen = prompts.outputs
    assert isinstance(chosen, Chosen)
    length = prompts.tokens.shape[2]
    written = length + chosen.lengths[..., None]
    drafts, found = draft(
        encoded.tokens,
        encoded.mask,
        jnp.concatenate([prompts.tokens, chosen.tokens], axis=-1),
        jnp.concatenate([prompts.mask, jnp.ones_like(chosen.tokens, bool)], axis=-1),
        written[..., 0],
        strategy.draft_tokens,
        strategy.draft_ngram,
    )
    fed = jnp.concatenate([prompts.last, drafts], axis=-1)
    slots = written - 1 + jnp.arange(fed.shape[-1])
    past = Past(
        jax.tree.map(lambda layer: layer[:, :, 0], prompts.cache), prompts.filled(written - 1)
    )
    positions = prompt_in_decoder.positions_of(prompts.mask)[:, :, -1:] + slots - length + 1
    hidden, present = prompt_in_decoder.decode(
        model, params, encoded, fed, jnp.ones_like(fed, bool), positions, slots, past
    )
    next_logits = model.apply({"params": params}, hidden, method="logits")
    places = chosen.lengths[..., None] + jnp.arange(fed.shape[-1])
    ruled = rules.bar_token(
        next_logits, model.config.eos_token_id, places < controls.min_new_tokens
    )
    if controls.forest is not None and prompts.node is not None:
        nodes = [prompts.node[..., 0]]
        for i in range(drafts.shape[-1]):
            nodes.append(constraints.next_node(controls.forest, nodes[-1], drafts[..., i]))
        ruled = constraints.constrain(
            ruled, next_logits, controls.forest, jnp.stack(nodes, axis=-1)
        )
    likeliest = rules.likeliest(ruled)
    right = jnp.cumprod(likeliest[..., :-1] == drafts, axis=-1).sum(axis=-1)

    # A token counts if all drafts before it were right and nothing has ended the output.
    counts = (jnp.arange(fed.shape[-1]) <= right[..., None]) & ~chosen.done[..., None]
    ends = (likeliest == model.config.eos_token_id) | (places + 1 >= controls.max_new_tokens)
    stop_state = prompts.stop_state
    if controls.stops is not None and stop_state is not None:
        states = [stop_state[..., 0]]
        for i in range(fed.shape[-1]):
            node = None if prompts.node is None else prompts.node[..., 0]
            states.append(after_stops(controls.stops, states[-1], likeliest[..., i], node))
        ends |= jnp.stack([controls.stops.stopped(one) for one in states[1:]], axis=-1)
    ended_before = jnp.cumsum(ends, axis=-1) - ends > 0
    counts &= ~ended_before
    count = counts.sum(axis=-1)

    def after_count(states: Int[Array, "B P L"]) -> Int[Array, "B P 1"]:
        return jnp.take_along_axis(states, count[..., None], axis=-1)

    def write(
        old: Float[Array, "B P beams H width M"], new: Float[Array, "B P H width L"]
    ) -> Array:
        place = jnp.arange(old.shape[-1]) - (written - 1)
        picked = jnp.take_along_axis(
            new, jnp.clip(place, 0, fed.shape[-1] - 1)[:, :, None, None], axis=-1
        )
        inside = (place >= 0) & (place < fed.shape[-1])
        return jnp.where(inside[:, :, None, None, None], picked[:, :, None], old)

    place = jnp.arange(chosen.tokens.shape[-1]) - chosen.lengths[..., None]
    picked = jnp.take_along_axis(likeliest, jnp.clip(place, 0, fed.shape[-1] - 1), axis=-1)
    tokens = jnp.where((place >= 0) & (place < count[..., None]), picked, chosen.tokens)
    log_probabilities = jnp.take_along_axis(next_logits, likeliest[..., None], axis=-1)[..., 0]
    log_probabilities = log_probabilities - jax.nn.logsumexp(next_logits, axis=-1)
    last = jnp.take_along_axis(likeliest, jnp.maximum(count - 1, 0)[..., None], axis=-1)
    node = prompts.node
    if controls.forest is not None and node is not None:
        before_last = jnp.take_along_axis(
            jnp.stack(nodes, axis=-1), jnp.maximum(count - 1, 0)[..., None], axis=-1
        )
        node = constraints.next_node(controls.forest, before_last, last)
    return State(
        step + 1,
        prompts._replace(
            last=last,
            node=node,
            stop_state=None if stop_state is None else after_count(jnp.stack(states, axis=-1)),
            cache=jax.tree.map(write, prompts.cache, present),
            outputs=Chosen(
                tokens=tokens,
                lengths=chosen.lengths + count,
                scores=chosen.scores + jnp.where(counts, log_probabilities, 0.0).sum(axis=-1),
                done=chosen.done | (ends & counts).any(axis=-1),
                drafted=chosen.drafted + jnp.where(chosen.done, 0, found),
                # What follows them may be right too, by chance: it was not read off the document.
                accepted=chosen.accepted + jnp.minimum(jnp.minimum(right, count), found),
            ),
        ),
    )
