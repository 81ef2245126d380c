"""The decoding loop over documents and prompts: prefill, advance, keep what still runs.

Pure functions, each one compiled program, on what `prompt_in_decoder.encode` returns:

    state = prefill(encoded, ...)                   read the prompts, choose a first token
    state = advance(..., until, ...)                choose further tokens
    state = keep(state, ...)                        drop prompts that have ended, and with
    encoded = keep_documents(encoded, ...)          all of its prompts a document

`pid_jax.decoding.engine` drives them. Every leaf of `State.prompts` has leading axes `[B, P]`,
so dropping prompts is one gather over the tree; and since the keys and values of a document
have no prompt axis at all, its beams read them as its prompts do.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import Arr
from pid_jax.decoding import beam, choosing, drafting, stopping, token_logprobs
from pid_jax.decoding.beam import Beams
from pid_jax.decoding.options import Controls, Strategy
from pid_jax.decoding.state import Chosen, Prompts, State
from pid_jax.models.protocol import EncoderDecoder, Params, Past
from pid_jax.prompt_in_decoder import EncodedDocuments


def prefill(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    prompts: Int[Array, "B P L"],
    prompt_mask: Bool[Array, "B P L"],
    active: Bool[Array, "B P"],
    roots: Int[Array, "B P"] | None,
    keys: UInt32[Array, "B P 2"] | None,
    controls: Controls,
    *,
    strategy: Strategy,
    room: int,
) -> State:
    """Reads the prompts and chooses a first token for each.

    prompts: left-padded, the start token first. active: False for the empty places of a ragged
    batch, which are not waited for. roots: each prompt's node in `controls.forest`, if there
    is one. room: the most tokens that will be chosen.
    """
    config = model.config
    width = strategy.num_beams
    length = prompts.shape[2]
    hidden, present = prompt_in_decoder.decode(
        model,
        params,
        encoded,
        prompts,
        prompt_mask,
        prompt_in_decoder.positions_of(prompt_mask),
        jnp.arange(length)[None],
    )
    # The last token chosen is never fed back, so it needs no slot; drafts may overshoot.
    slots = room - 1 + strategy.draft_tokens

    def with_room(layer: Float[Array, "B P H width L"]) -> Float[Array, "B P beams H width M"]:
        padded = jnp.pad(layer, [(0, 0)] * 4 + [(0, slots)])[:, :, None]
        return jnp.broadcast_to(padded, (*active.shape, width, *padded.shape[3:]))

    def of_every_beam(values: Int[Array, "B P"]) -> Int[Array, "B P K"]:
        return jnp.broadcast_to(values[:, :, None], (*active.shape, width))

    logprobs = None
    if strategy.logprobs is not None:
        places = active.shape if width == 1 else (*active.shape, width)
        logprobs = token_logprobs.empty(places, min(strategy.logprobs, config.vocab_size), room)
    if width > 1:
        outputs: Chosen | Beams = beam.start(active, width, room, config.pad_token_id, logprobs)
    else:
        outputs = Chosen(
            tokens=jnp.full((*active.shape, room), config.pad_token_id, jnp.int32),
            lengths=jnp.zeros(active.shape, jnp.int32),
            scores=jnp.zeros(active.shape, jnp.float32),
            done=~active,
            drafted=jnp.zeros(active.shape, jnp.int32),
            accepted=jnp.zeros(active.shape, jnp.int32),
            logprobs=logprobs,
        )
    start = Prompts(
        tokens=prompts,
        mask=prompt_mask,
        last=of_every_beam(prompts[:, :, -1]),
        outputs=outputs,
        node=None if roots is None else of_every_beam(roots),
        stop_state=None
        if controls.stops is None
        else jnp.full((*active.shape, width), stopping.START, jnp.int32),
        key=keys,
        cache=jax.tree.map(with_room, present),
    )
    # All beams of a prompt are the same as yet: one row of logits stands for them.
    first = model.apply({"params": params}, hidden[:, :, -1:], method="logits")
    state = State(jnp.int32(0), start)
    return choosing.choose(model, state, first, controls, strategy)


def advance(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    state: State,
    controls: Controls,
    until: Int[Array, ""],
    enough: tuple[Int[Array, ""], Int[Array, ""]],
    *,
    strategy: Strategy,
) -> State:
    """Chooses tokens until all is done, or `until` steps are, or little enough is left to do.

    enough: stop once no document has more than so many prompts not done, or once no more than
    so many documents have one at all.
    """

    def goes_on(state: State) -> Bool[Array, ""]:
        live = ~state.prompts.outputs.done
        most_prompts = live.sum(axis=1).max()
        live_documents = live.any(axis=1).sum()
        some = (most_prompts > enough[0]) & (live_documents > enough[1])
        return some & (state.step < until)

    def one_token(state: State) -> State:
        fed, prompts = _feed(model, params, encoded, state)
        return choosing.choose(model, State(state.step, prompts), fed, controls, strategy)

    def several_tokens(state: State) -> State:
        return drafting.verify(model, params, encoded, state, controls, strategy)

    return jax.lax.while_loop(
        goes_on, several_tokens if strategy.draft_tokens else one_token, state
    )


def keep(
    state: State,
    documents: Int[Arr, " B1"],
    prompts: Int[Arr, "B1 P1"],
    real: Bool[Arr, "B1 P1"],
) -> State:
    """The state of the given documents, and of each the given prompts; not `real` ones are done."""
    kept = jax.tree.map(lambda leaf: leaf[documents[:, None], prompts], state.prompts)
    kept = kept._replace(outputs=kept.outputs._replace(done=kept.outputs.done | ~real))
    return State(state.step, kept)


def keep_documents(encoded: EncodedDocuments, documents: Int[Arr, " B1"]) -> EncodedDocuments:
    """The encodings of the given documents."""
    return jax.tree.map(lambda leaf: leaf[documents], encoded)


def _feed(
    model: EncoderDecoder, params: Params, encoded: EncodedDocuments, state: State
) -> tuple[Float[Array, "B P K V"], Prompts]:
    """Runs the decoder on the last token of every beam: the next one's logits, a longer cache."""
    step, prompts = state
    slot = prompts.tokens.shape[2] + step - 1
    rows = _rows(prompts)
    cache = jax.tree.map(lambda layer: layer.reshape(*rows, *layer.shape[3:]), prompts.cache)
    hidden, present = prompt_in_decoder.decode(
        model,
        params,
        encoded,
        prompts.last.reshape(*rows, 1),
        jnp.ones((*rows, 1), bool),
        _over_beams(prompt_in_decoder.positions_of(prompts.mask)[:, :, -1:] + step, prompts),
        slot[None, None],
        Past(cache, _over_beams(prompts.filled(slot), prompts)),
    )
    cache = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=4),
        cache,
        present,
    )
    next_logits = model.apply({"params": params}, hidden[:, :, -1], method="logits")
    shape = prompts.last.shape
    cache = jax.tree.map(lambda layer: layer.reshape(*shape, *layer.shape[2:]), cache)
    return next_logits.reshape(*shape, -1), prompts._replace(cache=cache)


def _rows(prompts: Prompts) -> tuple[int, int]:
    """The sizes of the axes B and P K, as the decoder sees them."""
    documents, count, width = prompts.last.shape
    return documents, count * width


def _over_beams(values: Array, prompts: Prompts) -> Array:
    """`[B, P, ...]` to `[B, P K, ...]`."""
    return jnp.repeat(values, prompts.last.shape[2], axis=1)
