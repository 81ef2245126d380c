"""Which tokens an automaton allows in each state, with how many tokens left."""

import jax
import jax.numpy as jnp
import numpy as np

from pid_jax.decoding.patterns import Regex, compile_patterns
from pid_jax.decoding.token_automata import DEAD_END, UNCONSTRAINED, after, allowed, shortest
from tests.helpers.tiny_tokenizers import (
    END,
    END_OF_TURN,
    PAD,
    PIECES,
    SMALL,
    SMALL_CONFIG,
    SPECIAL,
    UNKNOWN,
    config_of,
    spell,
)


def test_tokens_that_could_not_finish_in_time_are_not_allowed():
    automaton, [start] = compile_patterns([Regex("a|b(?:ab){3}")], SMALL, SMALL_CONFIG)
    tokens = {piece: len(SPECIAL) + i for i, piece in enumerate(PIECES)}

    def pieces(left: int | None) -> set[str]:
        mask = np.asarray(allowed(automaton, jnp.int32(start), left))
        return {piece for piece, token in tokens.items() if mask[token]}

    assert shortest(automaton, start) == 1
    # T5's decoder drops every space of the first token.
    whole = {"a", "▁a", "b", "▁b", "▁", "▁▁", "▁ba", "b▁a"}
    assert pieces(None) == pieces(5) == whole
    # b ab ab ab are four tokens, and so are ▁ba b ab ab.
    assert pieces(4) == whole
    assert pieces(3) == {"a", "▁a", "▁", "▁▁"}
    assert pieces(1) == {"a", "▁a"}
    assert pieces(0) == set()


def test_end_tokens_are_allowed_exactly_where_the_text_is_a_whole_match():
    config = config_of(SMALL, eos_token_id=[END, END_OF_TURN])
    automaton, [start] = compile_patterns([Regex("ab?")], SMALL, config)
    [a, b] = (SMALL.convert_tokens_to_ids(piece) for piece in "ab")
    state, ends = start, []
    for token in (a, b):
        ends.append(np.asarray(allowed(automaton, jnp.int32(state), 0))[[END, END_OF_TURN]])
        state = int(after(automaton, jnp.int32(state), jnp.int32(token)))
    mask = np.asarray(allowed(automaton, jnp.int32(state)))
    np.testing.assert_array_equal(ends, [[False, False], [True, True]])
    np.testing.assert_array_equal(np.flatnonzero(mask), [END, END_OF_TURN])
    for end in END, END_OF_TURN:
        assert int(after(automaton, jnp.int32(state), jnp.int32(end))) == DEAD_END
    assert not np.asarray(allowed(automaton, jnp.int32(DEAD_END))).any()


def test_tokens_without_text_are_never_allowed(tokenizer):
    config = config_of(tokenizer)
    automaton, [start] = compile_patterns([Regex("(?s).*")], tokenizer, config)
    first = np.asarray(allowed(automaton, jnp.int32(start)))
    state = int(after(automaton, jnp.int32(start), jnp.int32(spell(tokenizer, "ab")[-1])))
    for mask in first, np.asarray(allowed(automaton, jnp.int32(state))):
        assert mask[END]
        assert not mask[[PAD, UNKNOWN]].any()
        assert not mask[len(tokenizer) :].any()
        special = [id for id in tokenizer.all_special_ids if id != END]
        assert not mask[special].any()
        assert mask.sum() > 10


def test_the_unconstrained_state_allows_all_tokens_and_leads_to_itself():
    automaton, _ = compile_patterns([Regex("a")], SMALL, SMALL_CONFIG)
    state = jnp.full((2, 3), UNCONSTRAINED)
    assert np.asarray(allowed(automaton, state)).all()
    assert np.asarray(allowed(automaton, state, 1)).all()
    tokens = jnp.array([[0, 1, 5], [6, 7, SMALL_CONFIG.vocab_size - 1]])
    np.testing.assert_array_equal(after(automaton, state, tokens), state)


def test_rows_have_limits_of_their_own_under_jit_and_vmap():
    automaton, [start] = compile_patterns([Regex("abab|b")], SMALL, SMALL_CONFIG)
    state, left = jnp.full((3, 2), start), jnp.array([[1, 2], [2, 1], [9, 1]])
    expected = np.asarray(
        [[allowed(automaton, jnp.int32(start), int(limit)) for limit in row] for row in left]
    )
    np.testing.assert_array_equal(jax.jit(allowed)(automaton, state, left), expected)
    over_rows = jax.vmap(allowed, in_axes=(None, 0, 0))
    np.testing.assert_array_equal(over_rows(automaton, state, left), expected)


def test_another_pattern_of_about_the_same_size_compiles_nothing():
    step = jax.jit(lambda *arguments: allowed(*arguments))  # with a cache of its own
    for pattern in "(?:ab)+", "b{3}", "a{1,20}\\.":
        automaton, [start] = compile_patterns([Regex(pattern)], SMALL, SMALL_CONFIG)
        step(automaton, jnp.full((4,), start), jnp.int32(7))
    assert step._cache_size() == 1
