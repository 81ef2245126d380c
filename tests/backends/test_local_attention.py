"""Local attention with global keys, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.backends import local_attention as module
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST, KeyValue
from pid_jax.backends.local_attention import (
    AttentionDropout,
    GlobalKeys,
    local_attention,
    local_attention_reference,
)

BATCH, HEADS, WIDTH = 2, 2, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that documents of few tokens have several blocks."""
    monkeypatch.setattr(module, "FEWEST_QUERIES", 2)


@pytest.fixture
def not_on_a_cpu(monkeypatch):
    """What other devices compile, in parts of three blocks."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())
    monkeypatch.setattr(module, "BLOCK_SCORES", 3 * BATCH * HEADS * 4 * (3 * 4 + 5))


def arrays(seed, length, radius, sources, per_centre, layout=ATTENDED_LAST):
    """Arguments of `local_attention`. Each document has tokens to attend to from its start on."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def layer(keys):
        shape = (BATCH, HEADS, keys, WIDTH)
        keys_and_values = normal(*shape), normal(*shape)
        return KeyValue(*map(layout.from_heads, keys_and_values), layout)

    mask = jnp.arange(length) < random.integers(1, length + 1, size=(BATCH, 1))
    global_keys = None
    if sources:
        centres = random.integers(sources, size=(BATCH, -(-length // max(per_centre, 1))))
        global_keys = GlobalKeys(
            layer(sources),
            jnp.asarray(random.random((BATCH, sources)) < 0.7),
            normal(HEADS, 2 * sources - 1) if per_centre else None,
            jnp.asarray(centres, jnp.int32) if per_centre else None,
            max(per_centre, 1),
        )
    bias = normal(HEADS, 2 * radius + 1) if random.random() < 0.7 else None
    query = normal(BATCH, HEADS, length, WIDTH)
    return query, layer(length), mask, bias, global_keys


def assert_equal_and_so_are_gradients(radius, query, layer, mask, bias, global_keys):
    seen = mask[:, None, :, None]  # what padding attends to does not matter
    weights = jnp.cos(jnp.arange(query.size)).reshape(query.shape)

    def with_gradients(attention):
        def attended(query, layer, bias, global_layer, global_bias):
            replaced = global_keys and global_keys._replace(
                layer=global_layer, distance_bias=global_bias
            )
            return jnp.where(seen, attention(query, layer, mask, radius, bias, replaced), 0.0)

        @jax.jit
        def run(*arguments):
            result, pull_back = jax.vjp(attended, *arguments)
            return result, pull_back(weights)

        global_layer, global_bias = (
            (global_keys.layer, global_keys.distance_bias) if global_keys else ((), ())
        )
        return run(query, layer, bias, global_layer, global_bias)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        with_gradients(local_attention),
        with_gradients(local_attention_reference),
    )


CASES = [
    # length, radius, global keys, queries that share a centre (0: no bias)
    (7, 3, 1, 4),
    (27, 4, 5, 0),
    (40, 2, 5, 3),
]


@pytest.mark.parametrize(("length", "radius", "sources", "per_centre"), CASES)
def test_blocks_give_what_the_reference_gives(length, radius, sources, per_centre):
    assert_equal_and_so_are_gradients(radius, *arrays(0, length, radius, sources, per_centre))


@pytest.mark.usefixtures("not_on_a_cpu")
@pytest.mark.parametrize(("length", "radius", "sources", "per_centre"), CASES[-1:])
def test_so_do_many_blocks_at_once(length, radius, sources, per_centre):
    assert_equal_and_so_are_gradients(radius, *arrays(0, length, radius, sources, per_centre))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.integers(1, 40),
    radius=st.integers(1, 6),
    sources=st.integers(0, 4),
    per_centre=st.integers(0, 5),
    layout=st.sampled_from([ATTENDED_FIRST, ATTENDED_LAST]),
)
def test_any_length_radius_grouping_and_layout_will_do(
    seed, length, radius, sources, per_centre, layout
):
    given = arrays(seed, length, radius, sources, per_centre, layout)
    query, layer, mask, bias, global_keys = given

    def run(attention):
        return jax.jit(lambda: attention(query, layer, mask, radius, bias, global_keys))()

    seen = np.broadcast_to(mask[:, None, :, None], query.shape)
    np.testing.assert_allclose(
        run(local_attention)[seen], run(local_attention_reference)[seen], atol=2e-5
    )


@pytest.mark.parametrize("same_for_queries", [True, False])
def test_dropout_takes_its_share_of_the_weights(same_for_queries):
    """Keys all alike: a query's output is the share of them that stays, scaled up again."""
    length, radius = 600, 50
    query = jnp.zeros((1, 1, length, 1))
    local_layer, global_layer = (
        KeyValue(jnp.ones((1, 1, 1, count)), jnp.ones((1, 1, 1, count)), ATTENDED_LAST)
        for count in (length, 30)
    )
    global_keys = GlobalKeys(global_layer, jnp.ones((1, 30), bool))
    dropout = AttentionDropout(jax.random.key(0), 0.25, same_for_queries)
    mask = jnp.ones((1, length), bool)

    @jax.jit
    def run():
        return local_attention(query, local_layer, mask, radius, None, global_keys, dropout)[
            0, 0, :, 0
        ]

    attended = run()
    assert np.mean(attended) == pytest.approx(1, abs=0.02)
    # 51 to 131 keys, each stays with probability 3/4, count 4/3.
    assert 0.03 < np.std(attended) < 0.1
    adjacent_agree = np.mean(np.diff(attended) == 0)
    assert (adjacent_agree > 0.2) == same_for_queries
