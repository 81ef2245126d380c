"""Closed lists of outputs: the forest against the lists it was made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from pid_jax.decoding.allowed_outputs import (
    DEAD_END,
    UNCONSTRAINED,
    PrefixForest,
    admissible,
    allowed_tokens,
    compile_forest,
    constrain,
    next_node,
)
from pid_jax.errors import UserError
from tests.helpers.quick_compilation import compile_fully

END = 1
TURN = 19
VOCAB = 6
allowed = jax.jit(allowed_tokens, static_argnums=2)
step = jax.jit(next_node)

STRING = st.lists(st.integers(2, VOCAB - 1), max_size=3).map(lambda body: [*body, END])
LISTS = st.lists(st.lists(STRING, min_size=1, max_size=6), min_size=1, max_size=4)


@jax.jit
def constrained(
    logits: jax.Array, unprocessed: jax.Array, forest: PrefixForest, node: jax.Array
) -> jax.Array:
    return constrain(logits, unprocessed, allowed_tokens(forest, node, logits.shape[-1]))


@settings(max_examples=50, deadline=None)
@given(LISTS)
def test_along_every_path_the_allowed_tokens_are_those_of_the_list(lists):
    forest, roots = compile_forest(lists)
    paths = [
        (strings, root, string[:length])
        for strings, root in zip(lists, roots, strict=True)
        for string in strings
        for length in range(len(string))
    ]
    node = np.full(4 * 6 * 4, UNCONSTRAINED, np.int32)  # as many as there can be: one compilation
    node[: len(paths)] = [root for _, root, _ in paths]
    node = jnp.asarray(node)
    for place in range(3):
        has_token = np.zeros(len(node), bool)
        token = np.zeros(len(node), np.int32)
        for row, (_, _, prefix) in enumerate(paths):
            if place < len(prefix):
                has_token[row], token[row] = True, prefix[place]
        node = jnp.where(has_token, step(forest, node, token), node)

    found = np.asarray(allowed(forest, node, VOCAB))
    for row, (strings, _, prefix) in enumerate(paths):
        expected = {s[len(prefix)] for s in strings if s[: len(prefix)] == prefix != s}
        assert set(np.flatnonzero(found[row])) == expected
    assert found[len(paths) :].all()


def test_tokens_off_every_path_lead_to_a_dead_end():
    forest, [root] = compile_forest([[[2, 3, END], [4, END]]])
    rows = jnp.array([root, root, root, DEAD_END])
    node = step(forest, rows, jnp.array([3, END, 0, 2]))
    np.testing.assert_array_equal(node, DEAD_END)
    assert not allowed(forest, node, VOCAB).any()


def test_the_end_token_leads_to_a_dead_end():
    forest, [root] = compile_forest([[[END], [2, END]]])
    assert step(forest, jnp.array(root), jnp.array(END)) == DEAD_END


def test_without_a_constraint_every_token_is_allowed_for_ever():
    forest, _ = compile_forest([[[2, END]]])
    node = jnp.full((2, 3), UNCONSTRAINED)
    assert allowed(forest, node, VOCAB).all()
    np.testing.assert_array_equal(step(forest, node, jnp.full((2, 3), 2)), UNCONSTRAINED)


def test_a_forest_without_trees_serves_unconstrained_rows():
    forest, roots = compile_forest([])
    assert roots == []
    assert allowed(forest, jnp.array([UNCONSTRAINED]), VOCAB).all()


def test_equal_lists_share_a_tree_whatever_their_order():
    shared = [[2, END], [3, END]]
    forest, roots = compile_forest([shared, [[4, END]], shared, [[3, END], [2, END], [2, END]]])
    assert roots[0] == roots[2] == roots[3] != roots[1]
    assert (
        forest.edge_tokens > 0
    ).sum() == 2 + 1 + 3  # a word and its end token each, roots' first


def test_lists_of_similar_sizes_make_the_same_shapes():
    one, _ = compile_forest([[[2, 3, END], [4, END], [5, 2, END]]])
    other, _ = compile_forest([[[3, END], [4, 4, END], [2, 5, END]], [[3, END]]])
    assert [part.shape for part in one] == [part.shape for part in other]


def test_vmap_and_batch_agree():
    forest, roots = compile_forest([[[2, 3, END], [4, END]], [[5, END]]])
    node = jnp.array([[*roots, UNCONSTRAINED], [DEAD_END, *roots]])
    token = jnp.array([[2, 5, 3], [2, 4, END]])
    over = jax.vmap(jax.vmap(lambda node: allowed(forest, node, VOCAB)))
    np.testing.assert_array_equal(over(node), allowed(forest, node, VOCAB))
    over = jax.vmap(jax.vmap(lambda node, token: step(forest, node, token)))
    np.testing.assert_array_equal(over(node, token), step(forest, node, token))


def test_constrained_logits_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    lists = [[[2, 3, END], [2, 5, END], [4, END]], [[END], [3, END]]]
    forest, roots = compile_forest(lists)
    logits = np.random.default_rng(0).normal(size=(2, VOCAB)).astype(np.float32)

    def may_follow(row: int, tokens: "torch.Tensor") -> list[int]:
        prefix = tokens.tolist()
        return [s[len(prefix)] for s in lists[row] if s[: len(prefix)] == prefix != s]

    processor = PrefixConstrainedLogitsProcessor(may_follow, num_beams=1)
    expected = processor(torch.zeros((2, 0)).long(), torch.tensor(logits)).numpy()
    found = constrained(jnp.asarray(logits), jnp.asarray(logits), forest, jnp.array(roots))
    np.testing.assert_array_equal(found, expected)


def test_rules_that_bar_all_that_is_allowed_yield():
    forest, [root] = compile_forest([[[2, END], [3, END]]])
    unprocessed = jnp.arange(VOCAB, dtype=jnp.float32)
    none_left = unprocessed.at[jnp.array([2, 3])].set(-jnp.inf)
    one_left = unprocessed.at[2].set(-jnp.inf)
    node = jnp.array([root, root, UNCONSTRAINED])
    rows = jnp.stack([none_left, one_left, none_left])
    found = constrained(rows, jnp.broadcast_to(unprocessed, rows.shape), forest, node)
    inf = np.inf
    expected = [[-inf, -inf, 2, 3, -inf, -inf], [-inf, -inf, -inf, 3, -inf, -inf], none_left]
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def many() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [[*random.integers(2, 32000, random.integers(1, 9)).tolist(), END] for _ in range(20000)]


@pytest.mark.optimised
def test_no_array_has_the_size_of_nodes_times_vocabulary(many):
    forest, [root] = compile_forest([many])
    rows, vocab_size = 8, 32128
    compiled = compile_fully(allowed.lower(forest, jnp.full(rows, root), vocab_size))
    memory = compiled.memory_analysis()
    entries = rows * (vocab_size + 3 * len(forest.offsets))
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 4 * entries


def test_strings_get_the_end_token_once():
    limits = {"end_token_ids": [END, TURN], "min_new_tokens": 0, "max_new_tokens": 3}
    strings = admissible([[2, END], [3], [END], []], "abcd", "allowed[0]", **limits)
    assert strings == [[2, END], [3, END], [END], [END]]


def test_a_string_may_fill_max_new_tokens_exactly():
    strings = [[2, 3, END]]
    limits = {"end_token_ids": [END, TURN], "min_new_tokens": 2}
    assert admissible(strings, ["ab"], "here", **limits, max_new_tokens=3) == strings
    with pytest.raises(UserError, match=r"allowed\[4\]: 'ab' takes 3 tokens .* max_new_tokens=2"):
        admissible(strings, ["ab"], "allowed[4]", **limits, max_new_tokens=2)


def test_strings_shorter_than_min_new_tokens_are_left_out():
    strings = [[2, END], [2, 3, END]]
    limits = {"end_token_ids": [END, TURN], "max_new_tokens": 9}
    assert admissible(strings, "ab", "here", **limits, min_new_tokens=2) == [[2, 3, END]]
    with pytest.raises(UserError, match=r"here admits no output: min_new_tokens=3, but even 'b'"):
        admissible(strings, "ab", "here", **limits, min_new_tokens=3)


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ([], "empty list"),
        ([[2, END, 3]], "end token 1 before its end"),
        ([[END, END]], "end token 1 before its end"),
        ([[2, TURN, 3]], "end token 19 before its end"),
    ],
)
def test_lists_that_make_no_sense_are_refused(strings, message):
    with pytest.raises(UserError, match=rf"allowed\[0\].*{message}"):
        admissible(
            strings,
            strings,
            "allowed[0]",
            end_token_ids=[END, TURN],
            min_new_tokens=0,
            max_new_tokens=9,
        )
