"""Attention to what is near and to a few things from everywhere, against all scores at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.models import local_attention
from pid_jax.models.attention import Source, attend
from pid_jax.models.local_attention import Dropout, Everywhere, attend_nearby
from pid_jax.models.protocol import KeyValue

BATCH, HEADS, WIDTH = 2, 2, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that documents of few tokens have several blocks."""
    monkeypatch.setattr(local_attention, "FEWEST_QUERIES", 2)


@pytest.fixture
def not_on_a_cpu(monkeypatch):
    """What other devices compile, in parts of three blocks."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())
    monkeypatch.setattr(local_attention, "BLOCK_SCORES", 3 * BATCH * HEADS * 4 * (3 * 4 + 5))


def arrays(seed, length, radius, sources, per_place):
    """Arguments of `attend_nearby`; each document has tokens to attend to from its start on."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def layer(keys):
        shape = (BATCH, HEADS, WIDTH, keys)
        return KeyValue(normal(*shape), normal(*shape))

    mask = jnp.arange(length) < random.integers(1, length + 1, size=(BATCH, 1))
    everywhere = None
    if sources:
        places = random.integers(sources, size=(BATCH, -(-length // max(per_place, 1))))
        everywhere = Everywhere(
            layer(sources),
            jnp.asarray(random.random((BATCH, sources)) < 0.7),
            normal(HEADS, 2 * sources - 1) if per_place else None,
            jnp.asarray(places, jnp.int32) if per_place else None,
            max(per_place, 1),
        )
    bias = normal(HEADS, 2 * radius + 1) if random.random() < 0.7 else None
    query = normal(BATCH, HEADS, length, WIDTH)
    return query, layer(length), mask, bias, everywhere


def all_at_once(query, layer, mask, radius, bias, everywhere):
    """The same, by a table of all scores."""
    length = query.shape[2]
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    within = np.abs(distance) <= radius
    biases = None
    if bias is not None:
        biases = bias[None, :, np.clip(distance + radius, 0, 2 * radius)]
    sources = [Source(layer, mask[:, None, :] & within, biases)]
    if everywhere is not None:
        count = everywhere.mask.shape[1]
        biases = None
        if everywhere.places is not None:
            places = jnp.repeat(everywhere.places, everywhere.queries_per_place, axis=1)
            places = places[:, :length]
            index = jnp.arange(count) - places[..., None] + count - 1
            biases = everywhere.distance_bias[:, index].transpose(1, 0, 2, 3)
        sources.append(Source(everywhere.layer, everywhere.mask[:, None, :], biases))
    return attend(query, sources)


def assert_equal_and_so_are_gradients(radius, query, layer, mask, bias, everywhere):
    seen = mask[:, None, :, None]  # what padding attends to is nobody's concern
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
        with_gradients(all_at_once),
    )


CASES = [
    # length, radius, keys from everywhere, queries that share a place (0: no bias)
    (7, 3, 1, 4),
    (27, 4, 5, 0),
    (40, 2, 5, 3),
]


@pytest.mark.parametrize(("length", "radius", "sources", "per_place"), CASES)
def test_blocks_give_what_a_table_of_all_scores_gives(length, radius, sources, per_place):
    assert_equal_and_so_are_gradients(radius, *arrays(0, length, radius, sources, per_place))


@pytest.mark.usefixtures("not_on_a_cpu")
@pytest.mark.parametrize(("length", "radius", "sources", "per_place"), CASES[-1:])
def test_so_do_many_blocks_at_once(length, radius, sources, per_place):
    assert_equal_and_so_are_gradients(radius, *arrays(0, length, radius, sources, per_place))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.integers(1, 40),
    radius=st.integers(1, 6),
    sources=st.integers(0, 4),
    per_place=st.integers(0, 5),
)
def test_any_length_radius_and_grouping_will_do(seed, length, radius, sources, per_place):
    query, layer, mask, bias, everywhere = arrays(seed, length, radius, sources, per_place)

    def run(attention):
        return jax.jit(lambda: attention(query, layer, mask, radius, bias, everywhere))()

    seen = np.broadcast_to(mask[:, None, :, None], query.shape)
    np.testing.assert_allclose(run(attend_nearby)[seen], run(all_at_once)[seen], atol=2e-5)


@pytest.mark.parametrize("same_for_queries", [True, False])
def test_dropout_takes_its_share_of_the_weights(same_for_queries):
    """Keys all alike: a query's output is the share of them that was kept, scaled up again."""
    length, radius = 600, 50
    query = jnp.zeros((1, 1, length, 1))
    layer = KeyValue(jnp.ones((1, 1, 1, length)), jnp.ones((1, 1, 1, length)))
    everywhere = Everywhere(KeyValue(jnp.ones((1, 1, 1, 30)), jnp.ones((1, 1, 1, 30))), None)
    everywhere = everywhere._replace(mask=jnp.ones((1, 30), bool))
    dropout = Dropout(jax.random.key(0), 0.25, same_for_queries)
    mask = jnp.ones((1, length), bool)

    @jax.jit
    def run():
        return attend_nearby(query, layer, mask, radius, None, everywhere, dropout)[0, 0, :, 0]

    attended = run()
    assert np.mean(attended) == pytest.approx(1, abs=0.02)
    # 51 to 131 keys, each kept with probability 3/4, count 4/3.
    assert 0.03 < np.std(attended) < 0.1
    neighbours_agree = np.mean(np.diff(attended) == 0)
    assert (neighbours_agree > 0.2) == same_for_queries
