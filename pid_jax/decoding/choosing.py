"""One step's choice of tokens, from logits: greedy, sampled or by beams, under all rules."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from pid_jax import prompt_in_decoder
from pid_jax.decoding import barring, beam, constraints, rules, stopping, token_logprobs
from pid_jax.decoding.beam import Beams
from pid_jax.decoding.options import Controls, Strategy
from pid_jax.decoding.state import Chosen, Prompts, State
from pid_jax.decoding.stopping import StopAutomaton
from pid_jax.decoding.token_logprobs import TokenLogprobs
from pid_jax.models.protocol import Config, EncoderDecoder, end_token_ids


def choose(
    model: EncoderDecoder,
    state: State,
    given: Float[Array, "B P J V"],
    controls: Controls,
    strategy: Strategy,
) -> State:
    """Adds a token to every output that is not done; J is K, or 1 while the beams are equal."""
    if isinstance(state.prompts.outputs, Beams):
        return _extend_beams(model, state, given, controls, strategy)
    return _extend(model, state, given, controls, strategy)


def _extend(
    model: EncoderDecoder,
    state: State,
    given: Float[Array, "B P 1 V"],
    controls: Controls,
    strategy: Strategy,
) -> State:
    """Greedy choice or sampling."""
    step, prompts = state
    chosen = prompts.outputs
    assert isinstance(chosen, Chosen)
    next_logits = given[:, :, 0]
    ruled = _ruled(model, state, given, chosen.tokens[:, :, None], controls, strategy)[:, :, 0]
    if prompts.key is not None:
        # Below the likeliest, which stays finite whatever the temperature.
        most = ruled.max(axis=-1, keepdims=True)
        ruled = (ruled - jnp.where(most == -jnp.inf, 0.0, most)) / controls.temperature
        if strategy.top_k:
            ruled = rules.keep_top_k(ruled, strategy.top_k)
        if strategy.with_top_p:
            ruled = rules.keep_top_p(ruled, controls.top_p)
        ruled = ruled + _noise(prompts.key, step, ruled.shape[-1])
    likeliest = rules.likeliest(ruled)
    token = jnp.where(chosen.done, model.config.pad_token_id, likeliest)
    log_probability = prompt_in_decoder.token_log_probabilities(next_logits, token)
    logprobs = chosen.logprobs
    if logprobs is not None:
        beside = token_logprobs.likeliest(next_logits, logprobs.top.shape[-2])
        here = TokenLogprobs(log_probability, *beside)
        logprobs = token_logprobs.written(logprobs, here, step)
    node, stop_state = _follow(prompts, token[..., None], controls)
    done = chosen.done | rules.is_one_of(token, end_token_ids(model.config))
    done |= step + 1 >= controls.max_new_tokens
    if controls.stops is not None and stop_state is not None:
        done |= controls.stops.stopped(stop_state)[..., 0]
    return State(
        step + 1,
        prompts._replace(
            last=token[..., None],
            node=node,
            stop_state=stop_state,
            outputs=chosen._replace(
                tokens=jax.lax.dynamic_update_index_in_dim(chosen.tokens, token, step, axis=2),
                lengths=chosen.lengths + ~chosen.done,
                scores=chosen.scores + jnp.where(chosen.done, 0.0, log_probability),
                done=done,
                logprobs=logprobs,
            ),
        ),
    )


def _extend_beams(
    model: EncoderDecoder,
    state: State,
    given: Float[Array, "B P J V"],
    controls: Controls,
    strategy: Strategy,
) -> State:
    step, prompts = state
    beams = prompts.outputs
    assert isinstance(beams, Beams)

    def process(log_probabilities: Float[Array, "B P J V"]) -> Float[Array, "B P J V"]:
        return _ruled(model, state, log_probabilities, beams.tokens, controls, strategy)

    def ends(parents: Int[Array, "B P C"], tokens: Int[Array, "B P C"]) -> Bool[Array, "B P C"]:
        ended = rules.is_one_of(tokens, end_token_ids(model.config))
        if controls.stops is not None and prompts.stop_state is not None:
            before = jnp.take_along_axis(prompts.stop_state, parents, axis=2)
            node = prompts.node
            if node is not None:
                node = jnp.take_along_axis(node, parents, axis=2)
            ended |= controls.stops.stopped(after_stops(controls.stops, before, tokens, node))
        return ended

    beams, parents, tokens = beam.choose(
        beams,
        given,
        step,
        process=process,
        ends=ends,
        end_tokens=len(end_token_ids(model.config)),
        max_new_tokens=controls.max_new_tokens,
        length_penalty=controls.length_penalty,
        early_stopping=strategy.early_stopping,
        pad_token_id=model.config.pad_token_id,
    )

    def of_parents(leaf: Array) -> Array:
        index = parents.reshape(*parents.shape, *[1] * (leaf.ndim - 3))
        return jnp.take_along_axis(leaf, index, axis=2)

    inherited = prompts._replace(
        outputs=beams,
        node=None if prompts.node is None else of_parents(prompts.node),
        stop_state=None if prompts.stop_state is None else of_parents(prompts.stop_state),
        cache=jax.tree.map(of_parents, prompts.cache),
    )
    node, stop_state = _follow(inherited, tokens, controls)
    return State(step + 1, inherited._replace(last=tokens, node=node, stop_state=stop_state))


def _ruled(
    model: EncoderDecoder,
    state: State,
    given: Float[Array, "B P J V"],
    chosen: Int[Array, "B P K T"],
    controls: Controls,
    strategy: Strategy,
) -> Float[Array, "B P J V"]:
    """Logits or log-probabilities after all rules, in transformers' order; the list comes last."""
    step, prompts = state
    rows = given.shape[2]
    ruled = given
    words = controls.words
    if strategy.with_repetition_penalty or strategy.no_repeat_ngram_size or words is not None:
        shape = (*given.shape[:3], prompts.tokens.shape[2])
        written = jnp.broadcast_to(
            jnp.arange(chosen.shape[3]) < step, (*given.shape[:3], chosen.shape[3])
        )
        before = jnp.broadcast_to(prompts.tokens[:, :, None], shape)
        history = jnp.concatenate([before, chosen[:, :, :rows]], axis=-1)
        before_mask = jnp.broadcast_to(prompts.mask[:, :, None], shape)
        mask = jnp.concatenate([before_mask, written], axis=-1)
        length = shape[-1] + step
        if strategy.with_repetition_penalty:
            ruled = rules.penalise_repetition(ruled, history, mask, controls.repetition_penalty)
        if strategy.no_repeat_ngram_size:
            size = strategy.no_repeat_ngram_size
            ruled = rules.bar_repeated_ngrams(ruled, history, mask, length, size)
            ruled = rules.unless_all_barred(ruled, given)
        if words is not None:
            ruled = barring.bar_words(ruled, history, mask, length, words)
    ruled = rule_by_place(model.config, prompts, ruled, step, controls)
    if controls.forest is not None and prompts.node is not None:
        ruled = constraints.constrain(ruled, given, controls.forest, prompts.node[:, :, :rows])
    return ruled


def rule_by_place(
    config: Config,
    prompts: Prompts,
    ruled: Float[Array, "B P K V"],
    place: Int[Array, ""] | Int[Array, "B P K"],
    controls: Controls,
) -> Float[Array, "B P K V"]:
    """The rules on what comes how late in an output. place: how many tokens come before."""
    place = jnp.broadcast_to(place, ruled.shape[:3])
    too_early = place < controls.min_new_tokens
    if prompts.node is not None:  # what a list holds is long enough, or was meant to be short
        too_early &= prompts.node[:, :, :1] == constraints.UNCONSTRAINED
    ruled = rules.bar_tokens(ruled, end_token_ids(config), too_early)
    is_first = place == 0
    has_no_prompt = prompts.mask.sum(axis=-1, keepdims=True) == 1
    ruled = rules.force_first_and_last(
        ruled, config, is_first & has_no_prompt, is_last=place + 1 == controls.max_new_tokens
    )
    if controls.suppressed is not None:
        begins = is_first
        if config.forced_bos_token_id is not None:  # then the second token is the first chosen one
            begins = jnp.where(has_no_prompt, place == 1, is_first)
        ruled = barring.suppress(ruled, controls.suppressed, begins)
    return ruled


def _follow(
    prompts: Prompts, tokens: Int[Array, "B P K"], controls: Controls
) -> tuple[Int[Array, "B P K"] | None, Int[Array, "B P K"] | None]:
    """Where the forest and the automaton of stop sequences stand after these tokens."""
    node, stop_state = prompts.node, prompts.stop_state
    if controls.forest is not None and node is not None:
        node = constraints.next_node(controls.forest, node, tokens)
    if controls.stops is not None and stop_state is not None:
        stop_state = after_stops(controls.stops, stop_state, tokens, prompts.node)
    return node, stop_state


def after_stops(
    stops: StopAutomaton,
    state: Int[Array, "*rows"],
    token: Int[Array, "*rows"],
    node: Int[Array, "*rows"] | None,
) -> Int[Array, "*rows"]:
    """The automaton's states after these tokens; it does not look at constrained outputs.

    node: where the outputs stood in the forest of allowed ones before these tokens.
    """
    after = stops.after(state, token)
    if node is None:
        return after
    return jnp.where(node == constraints.UNCONSTRAINED, after, stopping.START)


def _noise(
    keys: UInt32[Array, "B P 2"], step: Int[Array, ""], vocab_size: int
) -> Float[Array, "B P V"]:
    """Gumbel noise: the likeliest token after adding it is a sample of the softmax."""

    def of_one(key: UInt32[Array, "2"]) -> Float[Array, " V"]:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.gumbel(jax.random.fold_in(key, step), (vocab_size,), jnp.float32)

    return jax.vmap(jax.vmap(of_one))(keys)
