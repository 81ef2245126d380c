"""Attention with packed prompts, vmapped over prompts, against the same prompt by prompt."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.backends import packed_attention as module
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST, HeadsMerged, KeyValue
from pid_jax.backends.packed_attention import Source, pack_size, packed_attention
from pid_jax.models.attention import attend
from tests.helpers.compiled_programs import array_sizes

BATCH, WIDTH, SLOTS, TOKENS = 2, 8, 5, 7
SCALE, CAP = 0.5, 3.0


@pytest.mark.parametrize(
    ("prompts", "pack", "heads", "groups", "queries"),
    [
        (6, 32, 4, 4, 1),
        (6, 3, 4, 2, 1),
        (5, 2, 3, 1, 1),
        (6, 32, 3, 1, 3),
        (6, 3, 4, 4, 3),
        (5, 2, 4, 2, 3),
    ],
)
def test_prompts_see_what_each_sees_alone(prompts, pack, heads, groups, queries, monkeypatch):
    """Own keys, masks and biases of each prompt, and a document that all share."""
    monkeypatch.setattr(module, "PACK", pack)
    module._packed.cache_clear()
    random = np.random.default_rng(prompts + heads)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def layer(layout, *shape):
        layout = layout.for_heads(groups)
        key, value = (layout.from_heads(normal(*shape)) for _ in range(2))
        return KeyValue(key, value, layout)

    query = normal(prompts, BATCH, heads, queries, WIDTH)
    mask = jnp.asarray(random.random((prompts, BATCH, 1, SLOTS)) < 0.7).at[..., 0].set(True)
    bias, own_bias = normal(1, heads, queries, SLOTS), normal(prompts, 1, heads, queries, SLOTS)
    document_mask = jnp.asarray(random.random((BATCH, 1, TOKENS)) < 0.7)
    for layout in (HeadsMerged(), ATTENDED_FIRST, ATTENDED_LAST):
        cache = layer(layout, prompts, BATCH, groups, SLOTS, WIDTH)
        document = layer(ATTENDED_LAST, BATCH, groups, TOKENS, WIDTH)

        def all_sources(attention, query, cache, mask, own_bias, document=document):
            sources = [
                Source(cache, mask, bias),
                Source(document, document_mask),
                Source(cache, None, own_bias),
            ]
            return attention(query, sources, SCALE, soft_cap=CAP)

        arguments = query, cache, mask, own_bias
        packed = jax.jit(jax.vmap(functools.partial(all_sources, packed_attention)))(*arguments)
        attend_alone = jax.jit(functools.partial(all_sources, attend))
        alone = [
            attend_alone(*jax.tree.map(operator.itemgetter(i), arguments)) for i in range(prompts)
        ]
        np.testing.assert_allclose(packed, jnp.stack(alone), atol=2e-5)
    module._packed.cache_clear()


def test_the_gradient_is_that_of_plain_attention():
    random = np.random.default_rng(1)
    query, key = (
        jnp.asarray(random.normal(size=size), jnp.float32)
        for size in ((3, BATCH, 2, 4, WIDTH), (3, BATCH, 2, TOKENS, WIDTH))
    )
    mask = jnp.asarray(random.random((3, BATCH, 1, TOKENS)) < 0.7)
    bias = jnp.asarray(random.normal(size=(1, 2, 4, TOKENS)), jnp.float32)

    def total(attention, query, key, bias):
        def one(query, key, mask):
            layer = KeyValue(key, key * 2, ATTENDED_FIRST)
            return attention(query, [Source(layer, mask, bias)], SCALE)

        return jnp.square(jax.vmap(one)(query, key, mask)).sum()

    packed, plain = (
        jax.jit(jax.grad(functools.partial(total, attention), (0, 1, 2)))(query, key, bias)
        for attention in (packed_attention, attend)
    )
    for ours, theirs in zip(packed, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_document_alone_is_read_once():
    """No array of the lowered function has keys of the document for each prompt."""
    prompts = 3
    key = jnp.ones((BATCH, 2, WIDTH, TOKENS))
    document = KeyValue(key, key, ATTENDED_LAST)
    query = jnp.ones((prompts, BATCH, 2, 1, WIDTH))
    attended = jax.jit(jax.vmap(lambda query: packed_attention(query, [Source(document)])))
    assert max(array_sizes(attended.lower(query))) < prompts * key.size


@pytest.mark.parametrize(
    ("prompts", "queries", "size"),
    [(30, 1, 30), (64, 1, 32), (37, 1, 37), (67, 1, 1), (60, 41, 20), (4, 2000, 1)],
)
def test_packs_have_equal_sizes(prompts, queries, size):
    assert pack_size(prompts, queries) == size
