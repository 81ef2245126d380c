"""Attention to what is near and to a few things from everywhere, against all scores at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.backends import neighbours
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST, KeyValue
from pid_jax.backends.neighbours import (
    AttentionDropout,
    Everywhere,
    attend_nearby,
    attend_nearby_at_once,
)

BATCH, HEADS, WIDTH = 2, 2, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that documents of few tokens have several blocks."""
    monkeypatch.setattr(neighbours, "FEWEST_QUERIES", 2)


@pytest.fixture
def not_on_a_cpu(monkeypatch):
    """What other devices compile, in parts of three blocks."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())
    monkeypatch.setattr(neighbours, "BLOCK_SCORES", 3 * BATCH * HEADS * 4 * (3 * 4 + 5))


def arrays(seed, length, radius, sources, per_centre, layout=ATTENDED_LAST):
    """Arguments of `attend_nearby`. Each document has tokens to attend to from its start on."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def layer(keys):
        shape = (BATCH, HEADS, keys, WIDTH)
        keys_and_values = normal(*shape), normal(*shape)
        return KeyValue(*map(layout.from_heads, keys_and_values), layout)

    mask = jnp.arange(length) < random.integers(1, length + 1, size=(BATCH, 1))
    everywhere = None
    if sources:
        centres = random.integers(sources, size=(BATCH, -(-length // max(per_centre, 1))))
        everywhere = Everywhere(
            layer(sources),
            jnp.asarray(random.random((BATCH, sources)) < 0.7),
            normal(HEADS, 2 * sources - 1) if per_centre else None,
            jnp.asarray(centres, jnp.int32) if per_centre else None,
            max(per_centre, 1),
        )
    bias = normal(HEADS, 2 * radius + 1) if random.random() < 0.7 else None
    query = normal(BATCH, HEADS, length, WIDTH)
    return query, layer(length), mask, bias, everywhere


def assert_equal_and_so_are_gradients(radius, query, layer, mask, bias, everywhere):
    seen = mask[:, None, :, None]  # what padding attends to does not matter
    weights = jnp.cos(jnp.arange(query.size)).reshape(query.shape)

    def with_gradients(attention):
        def attended(query, layer, bias, far_layer, far_bias):
            far = everywhere and everywhere._replace(layer=far_layer, distance_bias=far_bias)
            return jnp.where(seen, attention(query, layer, mask, radius, bias, far), 0.0)

        @jax.jit
        def run(*arguments):
            result, pull_back = jax.vjp(attended, *arguments)
            return result, pull_back(weights)

        far_layer, far_bias = (
            (everywhere.layer, everywhere.distance_bias) if everywhere else ((), ())
        )
        return run(query, layer, bias, far_layer, far_bias)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        with_gradients(attend_nearby),
        with_gradients(attend_nearby_at_once),
    )


CASES = [
    # length, radius, keys from everywhere, queries that share a centre (0: no bias)
    (7, 3, 1, 4),
    (27, 4, 5, 0),
    (40, 2, 5, 3),
]


@pytest.mark.parametrize(("length", "radius", "sources", "per_centre"), CASES)
def test_blocks_give_what_a_table_of_all_scores_gives(length, radius, sources, per_centre):
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
    query, layer, mask, bias, everywhere = given

    def run(attention):
        return jax.jit(lambda: attention(query, layer, mask, radius, bias, everywhere))()

    seen = np.broadcast_to(mask[:, None, :, None], query.shape)
    np.testing.assert_allclose(
        run(attend_nearby)[seen], run(attend_nearby_at_once)[seen], atol=2e-5
    )


@pytest.mark.parametrize("same_for_queries", [True, False])
def test_dropout_takes_its_share_of_the_weights(same_for_queries):
    """Keys all alike: a query's output is the share of them that stays, scaled up again."""
    length, radius = 600, 50
    query = jnp.zeros((1, 1, length, 1))
    near, far = (
        KeyValue(jnp.ones((1, 1, 1, count)), jnp.ones((1, 1, 1, count)), ATTENDED_LAST)
        for count in (length, 30)
    )
    everywhere = Everywhere(far, jnp.ones((1, 30), bool))
    dropout = AttentionDropout(jax.random.key(0), 0.25, same_for_queries)
    mask = jnp.ones((1, length), bool)

    @jax.jit
    def run():
        return attend_nearby(query, near, mask, radius, None, everywhere, dropout)[0, 0, :, 0]

    attended = run()
    assert np.mean(attended) == pytest.approx(1, abs=0.02)
    # 51 to 131 keys, each stays with probability 3/4, count 4/3.
    assert 0.03 < np.std(attended) < 0.1
    neighbours_agree = np.mean(np.diff(attended) == 0)
    assert (neighbours_agree > 0.2) == same_for_queries
