"""Scanned layers compute what unrolled ones do, with the same parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pid_jax import models, prompt_in_decoder
from pid_jax.models.layer_stack import apply_layers
from pid_jax.models.protocol import Past
from tests.helpers.tiny_families import DISTINCT, STACK, VARIANTS
from tests.models.test_rematerialisation import BATCH

DEEP_STACK = {**STACK, "num_hidden_layers": 5}
"""A sliding and a full layer in turn: two steps of two layers, and a last layer."""
DEEP = {
    "t5gemma": {"encoder": DEEP_STACK, "decoder": DEEP_STACK},
    "t5gemma2": {"encoder": {"text_config": DEEP_STACK}, "decoder": DEEP_STACK},
}
DEEP_T5 = {"num_layers": 4, "num_decoder_layers": 3}
DEEP_BART = {"encoder_layers": 4, "decoder_layers": 3, "attention_window": [4, 8, 4, 8]}
"""The windows of LED alternate, so that each step of the encoder has two layers."""


def deep(config):
    """The configuration with more layers. Each family ignores the keys of the others."""
    return {**config, **DEEP_T5, **DEEP_BART, **DEEP.get(config["model_type"], {})}


FAMILIES = {name: deep(VARIANTS[name]) for name in DISTINCT}
FAMILIES["umt5"] = FAMILIES["t5"] | {"model_type": "umt5"}
"""Every layer has a position bias of its own. T5 has one for all layers."""


def trained(config, *, dropout_key=None, **options):
    """Loss and gradients as a function, and the parameters."""
    model = models.build(config, **options)
    params = models.init_params(model, jax.random.key(0))

    def loss(params):
        return prompt_in_decoder.loss(model, params, BATCH, dropout_key=dropout_key)[0]

    return jax.jit(jax.value_and_grad(loss)), params


def assert_close(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5)
    jax.tree.map(close, first, second)


def assert_equal_training(config, dropout_key=None):
    run, params = trained(config, dropout_key=dropout_key)
    expected = run(params)
    run, same = trained(config, dropout_key=dropout_key, scan_layers=True)
    assert_close(same, params)
    assert_close(run(params), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_scanned_layers_have_the_loss_and_gradients_of_unrolled_ones(family):
    assert_equal_training(FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_scanned_program_only_the_projections_of_documents_grow_with_depth(family):
    def products(layers):
        names = ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
        config = FAMILIES[family] | dict.fromkeys(names, layers)
        config["attention_window"] = [4, 8] * (layers // 2)
        sizes = {**STACK, "num_hidden_layers": layers}
        if family == "t5gemma":
            config |= {"encoder": sizes, "decoder": sizes}
        if family == "t5gemma2":
            config |= {"encoder": {"text_config": sizes}, "decoder": sizes}
        run, params = trained(config, scan_layers=True)
        return run.lower(params).as_text().count("dot_general")

    # Keys and values of each layer: a product, and two for its gradient.
    assert products(8) - products(4) == 4 * 2 * 3


@pytest.mark.parametrize(
    ("family", "remat"),
    [("t5", "full"), ("t5", "dots"), ("t5", "dots_with_no_batch_dims"), ("t5gemma", "full")],
)
def test_scanned_layers_train_alike_under_every_policy_of_rematerialisation(family, remat):
    config = {**FAMILIES[family], "dropout_rate": 0.1}
    key = jax.random.key(1)
    run, params = trained(config, scan_layers=True, dropout_key=key)
    again, _ = trained(config, scan_layers=True, dropout_key=key, remat=remat)
    assert "remat" in str(again.trace(params).jaxpr)
    assert_close(again(params), run(params))


class Dropping(nn.Module):
    """A layer that is only dropout."""

    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dropout(0.5)(x, deterministic)


class DroppingStack(nn.Module):
    def setup(self):
        self.layers = [Dropping() for _ in range(4)]

    def __call__(self, x):
        return apply_layers(self, x, [()] * 4, False, scan=True)[0]


def test_each_scanned_layer_draws_its_own_dropout():
    x = DroppingStack().apply({}, jnp.ones(10_000), rngs={"dropout": jax.random.key(0)})
    # One of 2 ** 4 entries passes four layers. With one draw for all layers every second would.
    assert set(np.unique(x)) == {0.0, 16.0}
    assert np.mean(x != 0) == pytest.approx(1 / 16, abs=0.01)


class Adding(nn.Module):
    """A layer whose kind cannot be compared: the equality of arrays has no truth value."""

    added: np.ndarray

    def __call__(self, x, deterministic):
        return x + self.added


class AddingStack(nn.Module):
    count: int

    def setup(self):
        self.layers = [Adding(np.arange(3)) for _ in range(self.count)]

    def __call__(self, x, scan):
        return apply_layers(self, x, [()] * self.count, True, scan=scan)


def test_kinds_of_layers_are_compared_only_for_a_scan():
    stack = AddingStack(2)
    x, others = stack.apply({}, jnp.ones(3), False)
    np.testing.assert_array_equal(x, [1, 3, 5])
    assert others == (None, None)
    with pytest.raises(ValueError, match="truth value"):
        stack.apply({}, jnp.ones(3), True)


@pytest.mark.parametrize("scan", [False, True])
def test_a_stack_without_layers_returns_its_input(scan):
    x, others = AddingStack(0).apply({}, jnp.arange(3.0), scan)
    np.testing.assert_array_equal(x, [0, 1, 2])
    assert others == ()


WITHOUT_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def test_scanned_layers_are_dropped_where_unrolled_ones_are():
    config = FAMILIES["bart"] | WITHOUT_DROPOUT | {"encoder_layerdrop": 0.5}
    key = jax.random.key(1)
    assert_equal_training(config | {"decoder_layerdrop": 0.5}, key)


def test_layer_drop_skips_every_scanned_layer_at_rate_one():
    config = FAMILIES["bart"] | WITHOUT_DROPOUT | {"encoder_layerdrop": 1.0}
    run, params = trained(config, scan_layers=True, dropout_key=jax.random.key(1))
    _, gradients = run(params)
    norms = jax.tree.map(lambda x: float(np.abs(x).max()), gradients["encoder"]["layers_0"])
    assert set(jax.tree.leaves(norms)) == {0.0}


def prefill_and_step(config, *, scan_layers):
    """The decoder on the prompts, and as a function on one more token."""
    model = models.build(config, scan_layers=scan_layers)
    params = models.init_params(model, jax.random.key(0))
    encode = jax.jit(functools.partial(prompt_in_decoder.encode, model))
    encoded = encode(params, BATCH.documents, BATCH.document_mask)
    tokens, mask = BATCH.prompts, BATCH.prompt_mask
    decode = functools.partial(prompt_in_decoder.decode, model, params, encoded)
    slots = jnp.arange(tokens.shape[-1])[None]
    hidden, present = jax.jit(decode)(tokens, mask, prompt_in_decoder.positions_of(mask), slots)
    one = jnp.ones_like(tokens[..., :1])

    def step(present):
        past = Past(present, mask)
        return decode(one, one > 0, one * tokens.shape[-1], slots[:, -1:], past)

    return (hidden, present), step


@pytest.mark.parametrize("family", ["t5", "bart", "t5gemma", "t5gemma2"])
def test_a_decode_step_is_never_scanned(family):
    scanned, step = prefill_and_step(FAMILIES[family], scan_layers=True)
    unrolled, expected = prefill_and_step(FAMILIES[family], scan_layers=False)
    assert_close(scanned, unrolled)
    assert str(jax.make_jaxpr(step)(scanned[1])) == str(jax.make_jaxpr(expected)(unrolled[1]))
