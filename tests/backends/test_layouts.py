"""Layouts of keys and values: all give the same, alone and in every family's model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST, HeadsMerged, KeyValue
from pid_jax.backends.settings import BY_PLATFORM, BackendSettings
from pid_jax.models.protocol import Past
from tests.helpers.tiny_families import DISTINCT, VARIANTS

LAYOUTS = [ATTENDED_FIRST, ATTENDED_LAST, HeadsMerged()]
by_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: type(one).__name__)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@settings(max_examples=8, deadline=None)
@given(
    batch=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    queries=st.integers(1, 12),
    keys=st.integers(1, 12),
    width=st.integers(1, 6),
)
def test_products_are_those_of_the_formulas(batch, queries, keys, width):
    query, weights = normal(0, *batch, queries, width), normal(1, *batch, queries, keys)
    key = normal(2, *batch, keys, width)
    for layout in (one.for_heads(batch[-1]) for one in LAYOUTS):
        laid_out = layout.from_heads(key)
        assert layout.length(laid_out) == keys
        np.testing.assert_allclose(
            layout.scores(query, laid_out), query @ key.swapaxes(-2, -1), atol=1e-5
        )
        np.testing.assert_allclose(layout.weighted(weights, laid_out), weights @ key, atol=1e-5)


@by_layout
@settings(max_examples=6, deadline=None)
@given(
    rows=st.lists(st.integers(1, 3), max_size=2),
    tokens=st.integers(1, 5),
    empty=st.integers(1, 5),
    new=st.integers(1, 4),
    data=st.data(),
)
def test_a_cache_is_padded_written_and_cut(layout, rows, tokens, empty, new, data):
    heads, width = 2, 3
    layout = layout.for_heads(heads)
    old, added = normal(0, *rows, heads, tokens, width), normal(1, *rows, heads, new, width)
    new = min(new, tokens + empty)
    added = added[..., :new, :]
    cache = KeyValue(layout.from_heads(old), layout.from_heads(old), layout).pad(empty)
    slots = cache.length()
    assert slots == tokens + empty or layout == HeadsMerged(heads)
    expected = np.zeros((*rows, heads, slots, width), np.float32)
    expected[..., :tokens, :] = old

    present = KeyValue(layout.from_heads(added), layout.from_heads(added), layout)
    np.testing.assert_array_equal(cache.key, layout.from_heads(jnp.asarray(expected)))

    slot = data.draw(st.integers(0, slots - new))
    same = expected.copy()
    same[..., slot : slot + new, :] = added
    written = cache.write(present, jnp.int32(slot))
    np.testing.assert_array_equal(written.value, layout.from_heads(jnp.asarray(same)))
    cut = written.window(slot, new)
    np.testing.assert_array_equal(cut.key, present.key)
    np.testing.assert_array_equal(written.window(jnp.int32(slot), new).key, present.key)

    starts = np.array(
        data.draw(
            st.lists(
                st.integers(0, slots - new),
                min_size=int(np.prod(rows)),
                max_size=int(np.prod(rows)),
            )
        )
    ).reshape(rows)
    each = expected.copy()
    for row in np.ndindex(*rows):
        each[(*row, slice(None), slice(starts[row], starts[row] + new))] = added[row]
    written = cache.write_each(present, jnp.asarray(starts, jnp.int32))
    np.testing.assert_array_equal(written.key, layout.from_heads(jnp.asarray(each)))


DOCUMENTS = np.array([[2 + (7 * i) % 90 for i in range(70)], [2 + i for i in range(70)]])
LENGTHS = np.array([[70], [41]])
PROMPTS = np.array([[[3, 4, 5], [6, 7, 8]], [[9, 10, 11], [12, 13, 14]]])
STEPS = 2


def decoded(model, params):
    """Logits of each token of a greedy decoding, the document's keys and the cache.

    Every other write to the key/value cache is row by row.
    """
    batch, prompts, length = PROMPTS.shape
    documents, mask = jnp.asarray(DOCUMENTS), jnp.arange(70) < LENGTHS
    encoded = prompt_in_decoder.encode(model, params, documents, mask)

    def decode(tokens, start, past):
        slots = start + jnp.arange(tokens.shape[2])[None]
        positions = jnp.broadcast_to(slots[None], tokens.shape)
        hidden, present = prompt_in_decoder.decode(
            model, params, encoded, tokens, jnp.ones(tokens.shape, bool), positions, slots, past
        )
        return model.apply({"params": params}, hidden[:, :, -1:], method="logits"), present

    logits, present = decode(jnp.asarray(PROMPTS), 0, None)
    cache, all_logits = tuple(layer.pad(STEPS) for layer in present), [logits]
    all_slots = cache[0].length()
    for step in range(STEPS):
        slot = length + step
        filled = jnp.broadcast_to(jnp.arange(all_slots) < slot, (batch, prompts, all_slots))
        logits, present = decode(logits.argmax(-1), slot, Past(cache, filled))
        starts = jnp.full((batch, prompts), slot)
        cache = tuple(
            old.write(new, jnp.int32(slot)) if i % 2 else old.write_each(new, starts)
            for i, (old, new) in enumerate(zip(cache, present, strict=True), start=step)
        )
        all_logits.append(logits)
    return jnp.concatenate(all_logits, axis=2), encoded.cross_attention, cache


REFERENCE = BackendSettings(ATTENDED_FIRST, ATTENDED_FIRST)
OTHERS = {
    "attended last": BackendSettings(ATTENDED_LAST, ATTENDED_LAST),
    "heads merged": BY_PLATFORM["tpu"],
}


@pytest.mark.parametrize("family", DISTINCT)
def test_a_model_gives_the_same_in_other_layouts(family, monkeypatch):
    model = models.build(VARIANTS[family])
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), jnp.float32),
        models.abstract_params(model),
    )

    def logits_with(settings):
        monkeypatch.setitem(BY_PLATFORM, jax.default_backend(), settings)
        decoding_params = model.decoding_params(params)
        # A function of its own: JAX would not trace the same one again.
        logits, documents, cache = jax.jit(lambda params: decoded(model, params))(decoding_params)
        assert {type(layer.layout) for layer in documents} == {type(settings.document_layout)}
        assert {type(layer.layout) for layer in cache} == {type(settings.cache_layout)}
        return logits

    expected = logits_with(REFERENCE)
    for other in OTHERS.values():
        np.testing.assert_allclose(logits_with(other), expected, rtol=1e-4, atol=1e-4)
    jax.clear_caches()
