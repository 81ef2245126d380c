"""Attention of decoders to many queries on a TPU, with prompts as rows of a kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.backends import prompt_attention
from pid_jax.backends.dropout import AttentionDropout
from pid_jax.backends.layouts import ATTENDED_LAST, HeadsMerged, KeyValue
from pid_jax.backends.settings import BY_PLATFORM
from pid_jax.models.attention import Source, attend
from tests.backends.test_document_attention import assert_same

PROMPTS, BATCH, HEADS, WIDTH = 4, 2, 2, 64


@pytest.fixture(params=["pallas", "xla"])
def kernel(request, monkeypatch):
    """A CPU with the attention of another backend. It interprets Pallas kernels."""
    changed = dataclasses.replace(BY_PLATFORM["cpu"], document_kernel=request.param)
    return lambda: monkeypatch.setitem(BY_PLATFORM, "cpu", changed)


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def gradients(query, layer, bias, mask, axes, rate, scale):
    """Attention of all prompts and its gradients. axes: those of prompts in the layer and mask."""

    def of_prompts(query, layer, bias):
        def of_prompt(query, layer, mask, key):
            dropout = None
            if rate is not None:
                dropout = AttentionDropout(key, rate, same_for_queries=True)
            return attend(query, [Source(layer, mask, bias)], scale, dropout)

        keys = jax.random.split(jax.random.key(1), PROMPTS)
        return jax.vmap(of_prompt, in_axes=(1, *axes, 0), out_axes=1)(query, layer, mask, keys)

    out, pull = jax.vjp(of_prompts, query, layer, bias)
    return out, pull(normal(np.random.default_rng(9), *out.shape))


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("length", [5, 24])
def test_cross_attention(kernel, rate, length):
    rng = np.random.default_rng(0)
    query = normal(rng, BATCH, PROMPTS, HEADS, length, WIDTH)
    layer = KeyValue(
        normal(rng, BATCH, HEADS, WIDTH, 70), normal(rng, BATCH, HEADS, WIDTH, 70), ATTENDED_LAST
    )
    mask = jnp.asarray(rng.random((BATCH, 1, 70)) < 0.6)
    arguments = query, layer, None, mask, (None, None), rate, 0.2
    expected = gradients(*arguments)
    kernel()
    assert_same(gradients(*arguments), expected)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("length", [5, 24])
@pytest.mark.parametrize("with_bias", [True, False])
def test_self_attention(kernel, rate, length, with_bias):
    rng = np.random.default_rng(0)
    query = normal(rng, BATCH, PROMPTS, HEADS, length, WIDTH)
    layout = HeadsMerged(HEADS)
    shape = BATCH, PROMPTS, length, HEADS * WIDTH
    layer = KeyValue(normal(rng, *shape), normal(rng, *shape), layout)
    tokens = rng.random((BATCH, PROMPTS, 1, length)) < 0.8
    tokens[..., 0] = True
    mask = jnp.asarray(np.tril(np.ones((length, length), bool)) & tokens)
    bias = normal(rng, 1, HEADS, length, length) if with_bias else None
    arguments = query, layer, bias, mask, (1, 1), rate, 0.2
    expected = gradients(*arguments)
    kernel()
    assert_same(gradients(*arguments), expected)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("own", [False, True])
def test_blocks_of_documents_give_the_same(monkeypatch, rate, own):
    rng = np.random.default_rng(0)
    batch, length = 6, 5
    query = normal(rng, batch, PROMPTS, HEADS, length, WIDTH)
    prompts = (PROMPTS,) if own else ()
    keys = length if own else 70
    layer = KeyValue(
        normal(rng, batch, *prompts, HEADS, WIDTH, keys),
        normal(rng, batch, *prompts, HEADS, WIDTH, keys),
        ATTENDED_LAST,
    )
    mask = jnp.asarray(rng.random((batch, *prompts, length if own else 1, keys)) < 0.6)
    bias = normal(rng, 1, HEADS, length, keys) if own else None
    arguments = query, layer, bias, mask, (1, 1) if own else (None, None), rate, 0.2
    expected = gradients(*arguments)
    changed = dataclasses.replace(BY_PLATFORM["cpu"], document_kernel="cudnn")
    monkeypatch.setitem(BY_PLATFORM, "cpu", changed)
    scores = query.size // WIDTH * keys
    monkeypatch.setattr(prompt_attention, "STORED_SCORES", scores // 2)
    assert_same(gradients(*arguments), expected)
    assert "while" in jax.jit(lambda: gradients(*arguments)[0]).lower().as_text()


@pytest.mark.parametrize("block_scores", [1, 1 << 24])
def test_prefill_reads_a_document_without_dropout(monkeypatch, block_scores):
    rng = np.random.default_rng(0)
    query = normal(rng, BATCH, PROMPTS, HEADS, 5, WIDTH)
    keys = normal(rng, BATCH, 70, HEADS * WIDTH), normal(rng, BATCH, 70, HEADS * WIDTH)
    layer = KeyValue(*keys, HeadsMerged(HEADS))
    mask = jnp.asarray(rng.random((BATCH, 1, 70)) < 0.6)
    arguments = query, layer, None, mask, (None, None), None, 0.2
    expected = gradients(*arguments)
    monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["tpu"])
    monkeypatch.setattr(prompt_attention, "BLOCK_SCORES", block_scores)
    calls = []
    kernel = prompt_attention._cross_attention
    monkeypatch.setattr(
        prompt_attention, "_cross_attention", lambda *args: calls.append(1) or kernel(*args)
    )
    assert_same(gradients(*arguments), expected)
    # The kernel is for documents with many scores.
    assert bool(calls) == (block_scores == 1)


def test_rows_without_a_visible_key_average_the_keys_of_their_prompt(kernel):
    rng = np.random.default_rng(0)
    query = normal(rng, BATCH, PROMPTS, HEADS, 8, WIDTH)
    shape = BATCH, PROMPTS, 8, HEADS * WIDTH
    layer = KeyValue(normal(rng, *shape), normal(rng, *shape), HeadsMerged(HEADS))
    mask = jnp.zeros((BATCH, PROMPTS, 8, 8), bool)
    arguments = query, layer, None, mask, (1, 1), 0.0, 1.0
    expected = gradients(*arguments)[0]
    kernel()
    assert_same(gradients(*arguments)[0], expected)
