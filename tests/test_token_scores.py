"""Scores of target tokens against `jax.nn.log_softmax` of all logits, with their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.matmul import head_matmul
from pid_jax.data.batching import Batch
from pid_jax.token_scores import token_scores
from tests.helpers.compiled_programs import array_sizes

GROUPS, OUTPUTS, VOCABULARY = 6, 5, 64
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, VOCABULARY, (GROUPS, OUTPUTS)).astype(np.int32)
MASK = RANDOM.random((GROUPS, OUTPUTS)) < 0.4
MASK[1] = False


@pytest.fixture(scope="module")
def hidden(tiny_model):
    shape = GROUPS, OUTPUTS, tiny_model.config.d_model
    return jnp.asarray(RANDOM.normal(size=shape) * 5, jnp.float32)


def plain(model, params, hidden):
    """The scores as their definitions say, from all logits."""
    logits = model.apply({"params": params}, hidden, method="logits")
    log_softmax = jax.nn.log_softmax(logits)
    return (
        jnp.take_along_axis(log_softmax, TOKENS[..., None], -1)[..., 0],
        jax.nn.logsumexp(logits, axis=-1),
        logits.mean(-1),
        logits.argmax(-1) == TOKENS,
    )


def in_chunks(model, params, hidden, logits_at_once):
    return token_scores(model, params, hidden, TOKENS, MASK, logits_at_once)


# One chunk, one output per chunk, one document per chunk, chunks of several documents.
CHUNKS = [10_000, 1, VOCABULARY, 3 * VOCABULARY, 13 * VOCABULARY, 29 * VOCABULARY]


@pytest.mark.parametrize("logits_at_once", CHUNKS)
def test_scores_are_those_of_all_logits(tiny_model, hidden, logits_at_once):
    expected = plain(tiny_model.model, tiny_model.params, hidden)
    scores = in_chunks(tiny_model.model, tiny_model.params, hidden, logits_at_once)
    for score, of_all in zip(scores, expected, strict=True):
        np.testing.assert_allclose(score, np.where(MASK, of_all, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logits_at_once", CHUNKS)
def test_gradients_are_those_of_all_logits(tiny_model, hidden, logits_at_once):
    """Of a sum with other weights for every token and every score."""
    weights = RANDOM.normal(size=(3, GROUPS, OUTPUTS)).astype(np.float32)

    def weighted(scores):
        return sum(
            jnp.sum(jnp.where(MASK, w * s, 0)) for w, s in zip(weights, scores, strict=False)
        )

    def gradients(scores_of):
        return jax.grad(lambda *args: weighted(scores_of(tiny_model.model, *args)), (0, 1))(
            tiny_model.params, hidden
        )

    expected = gradients(plain)
    found = gradients(functools.partial(in_chunks, logits_at_once=logits_at_once))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
    )


def test_a_token_is_the_highest_where_argmax_is_the_token(tiny_model):
    """The first of several equal logits, and none for NaN."""
    params = {**tiny_model.params, "shared": {"embedding": jnp.ones((64, 16))}}
    hidden = jnp.ones((1, 3, 16)).at[0, 2].set(jnp.nan)
    tokens = np.array([[0, 1, 5]], np.int32)
    scores = token_scores(tiny_model.model, params, hidden, tokens, np.ones((1, 3), bool), 10_000)
    np.testing.assert_array_equal(scores.is_highest, [[True, False, False]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_does_not_depend_on_how_many_logits_exist_at_once(
    tiny_model, monkeypatch, smoothing
):
    mask = RANDOM.random((2, 3, 4)) < 0.5

    def tokens(*shape):
        return RANDOM.integers(2, 64, shape).astype(np.int32), np.ones(shape, bool)

    batch = Batch(*tokens(2, 7), *tokens(2, 3, 2), tokens(2, 3, 4)[0], mask)

    def run():
        loss = functools.partial(
            prompt_in_decoder.loss, label_smoothing=smoothing, z_loss=0.01, batch=batch
        )
        run = jax.value_and_grad(lambda params: loss(tiny_model.model, params), has_aux=True)
        return jax.jit(run)(tiny_model.params)

    whole = run()
    monkeypatch.setattr(prompt_in_decoder, "LOGITS_AT_ONCE", 5 * 64)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), run(), whole)


@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_training_holds_few_logits_at_once(model_type):
    """With a head of its own and with a tied one. All logits have 15 times as many numbers."""
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    tied = {"tie_word_embeddings": model_type == "t5"}
    model = models.build({"model_type": model_type, "vocab_size": 250_112, **sizes, **tied})

    def tokens(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)

    batch = Batch(*tokens(2, 64), *tokens(2, 32, 8), *tokens(2, 32, 32))
    lowered = jax.jit(
        jax.grad(lambda params, batch: prompt_in_decoder.loss(model, params, batch)[0])
    )
    sizes = array_sizes(lowered.lower(models.abstract_params(model), batch))
    assert max(sizes) <= prompt_in_decoder.LOGITS_AT_ONCE


def test_the_gradient_of_a_bfloat16_head_is_computed_in_float32():
    x = jnp.asarray(RANDOM.normal(size=(32, 8)), jnp.bfloat16)
    kernel = jnp.asarray(RANDOM.normal(size=(8, 16)), jnp.float32)
    weights = jnp.asarray(RANDOM.normal(size=(32, 16)), jnp.bfloat16).astype(jnp.float32)

    def product(x, kernel):
        return jnp.sum(head_matmul(x, kernel, jnp.bfloat16) * weights)

    of_x, of_kernel = jax.grad(product, (0, 1))(x, kernel)
    assert (of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    x = np.asarray(x.astype(jnp.float32), np.float64)
    np.testing.assert_allclose(
        of_kernel, x.T @ np.asarray(weights, np.float64), rtol=1e-5, atol=1e-5
    )
    rounded = np.asarray(kernel.astype(jnp.bfloat16).astype(jnp.float32), np.float64)
    exact = np.asarray(weights, np.float64) @ rounded.T
    np.testing.assert_allclose(of_x.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)
    exact = x @ rounded
    np.testing.assert_allclose(
        head_matmul(jnp.asarray(x, jnp.bfloat16), kernel, jnp.bfloat16), exact, rtol=1e-5, atol=1e-5
    )
