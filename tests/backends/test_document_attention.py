"""Attention of encoders without stored scores, against attention with all scores in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.backends.blockwise_attention import full_attention
from pid_jax.backends.document_attention import (
    by_distance,
    document_attention,
    recomputed_attention,
)
from pid_jax.backends.dropout import AttentionDropout
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST, KeyValue
from pid_jax.backends.settings import BY_PLATFORM


@pytest.fixture(params=["pallas", "cudnn", "xla"])
def kernel(request, monkeypatch):
    """A CPU with the attention of another backend. It interprets Pallas kernels."""
    changed = dataclasses.replace(BY_PLATFORM["cpu"], document_kernel=request.param)
    monkeypatch.setitem(BY_PLATFORM, "cpu", changed)
    return request.param


def arrays(length, heads=4, groups=4, width=64, batch=2, seed=0, layout=ATTENDED_LAST):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    query = normal(batch, heads, length, width) * 0.3
    key, value = normal(batch, groups, length, width) * 0.3, normal(batch, groups, length, width)
    mask = rng.random((batch, length)) < 0.7
    mask[:, length // 2] = True
    bias = normal(heads, 2 * length - 1)
    layer = KeyValue(layout.from_heads(key), layout.from_heads(value), layout)
    return query, layer, jnp.asarray(mask), bias


def with_gradients(function, query, layer, mask, bias, **options):
    """The result, and the gradients of query, keys, values and bias."""

    def attend(query, layer, bias):
        return function(query, layer, mask, bias, **options)

    @jax.jit
    def both(query, layer, bias):
        out, pull = jax.vjp(attend, query, layer, bias)
        direction = jnp.asarray(np.random.default_rng(9).normal(size=out.shape), out.dtype)
        return out, pull(direction)

    return both(query, layer, bias)


def assert_same(ours, theirs, tolerance=2e-5):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one / scale, other / scale, atol=tolerance)


@pytest.mark.parametrize("length", [128, 200, 640])
def test_biases_of_distances_and_masks_that_are_no_prefixes(kernel, length):
    inputs = arrays(length)
    assert_same(
        with_gradients(document_attention, *inputs), with_gradients(full_attention, *inputs)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.125, "soft_cap": 2.0},
        {"reach": (17, 5)},
        {"reach": (0, 150), "scale": 0.5, "soft_cap": 5.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_soft_caps_windows_and_shared_keys(kernel, options, groups, with_bias):
    query, layer, mask, bias = arrays(256, heads=2, groups=groups, width=128, batch=1)
    # Otherwise a window has no visible key, and the reference averages over all keys.
    mask = mask.at[:, ::4].set(True)
    inputs = query, layer, mask, bias if with_bias else None
    assert_same(
        with_gradients(document_attention, *inputs, **options),
        with_gradients(full_attention, *inputs, **options),
    )


@pytest.mark.parametrize("layout", [ATTENDED_FIRST, ATTENDED_LAST], ids=str)
def test_dropout_that_queries_share_is_that_of_the_weights(kernel, layout):
    query, layer, mask, bias = arrays(256, layout=layout)
    dropout = AttentionDropout(jax.random.key(3), 0.3, same_for_queries=True)
    # What `flax.linen.Dropout(0.3, broadcast_dims=(-2,))` draws for weights [B, H, S, S].
    remains = jax.random.bernoulli(jax.random.key(3), 0.7, (2, 4, 1, 256))

    def reference(query, layer, mask, bias):
        distance = jnp.arange(256)[None] - jnp.arange(256)[:, None]
        scores = layer.scores(query) + bias[None, :, distance + 255]
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9), axis=-1)
        return layer.weighted(jnp.where(remains, weights / 0.7, 0))

    assert_same(
        with_gradients(document_attention, query, layer, mask, bias, dropout=dropout),
        with_gradients(reference, query, layer, mask, bias),
    )


def test_dropout_of_each_query_has_the_rate_and_the_same_keys_in_the_gradient(kernel):
    _, layer, mask, _ = arrays(256, heads=2, groups=2, batch=1)
    query = jnp.zeros((1, 2, 256, 64))
    mask = jnp.ones_like(mask)
    value = ATTENDED_LAST.from_heads(jnp.ones((1, 2, 256, 64)))
    layer = KeyValue(layer.key, value, layer.layout)
    dropout = AttentionDropout(jax.random.key(0), 0.25, same_for_queries=False)

    def attend(value):
        changed = KeyValue(layer.key, value, layer.layout)
        return document_attention(query, changed, mask, dropout=dropout)

    out, pull = jax.vjp(attend, value)
    # All weights are 1 / 256, so that each query has the share of its remaining keys.
    share = out[0, :, :, 0]
    assert abs(float(share.mean()) - 1) < 0.01
    assert 0.02 < float(share.std()) < 0.06
    # The function is linear in the values.
    (gradient,) = pull(jnp.ones_like(out))
    np.testing.assert_allclose(float((gradient * value).sum()), float(out.sum()), rtol=1e-5)


def test_bfloat16_is_as_close_as_its_rounding(kernel):
    query, layer, mask, bias = arrays(256)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (query, layer))
    assert_same(
        jax.tree.map(
            lambda x: x.astype(jnp.float32),
            with_gradients(document_attention, *rounded, mask, bias),
        ),
        with_gradients(full_attention, query, layer, mask, bias),
        tolerance=0.02,
    )


def test_documents_of_padding_alone_average_their_values(kernel):
    query, layer, mask, bias = arrays(200)
    inputs = query, layer, jnp.zeros_like(mask), bias
    assert_same(document_attention(*inputs), full_attention(*inputs))


def test_recomputed_blocks_need_not_divide_the_length(monkeypatch):
    monkeypatch.setattr("pid_jax.backends.document_attention.BLOCK_SCORES", 1 << 15)
    inputs = arrays(100)
    for options in ({}, {"reach": (3, 10)}):
        assert_same(
            with_gradients(recomputed_attention, *inputs, **options),
            with_gradients(full_attention, *inputs, **options),
        )


def test_a_bias_of_distances_has_the_bias_of_each_pair():
    biases = jnp.arange(2 * 7.0).reshape(2, 7)
    table = np.asarray(by_distance(biases, 3))
    for head in range(2):
        for query in range(3):
            for key in range(4):
                assert table[head, query, key] == biases[head, 3 + key - query]
