"""LoRA in every family: against the merged model, against qwix, and what an adapter changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from pid_jax import models, prompt_in_decoder
from pid_jax.models import lora
from pid_jax.models.lora import Lora
from tests.helpers import adapted
from tests.helpers.adapted import ALL, QUERIES_AND_VALUES
from tests.helpers.tiny_families import DISTINCT, VARIANTS


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, batch):
    return prompt_in_decoder.teacher_forced_logits(model, params, batch)


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "pid") for name in VARIANTS), *((name, "pie") for name in ("t5", "bart", "t5gemma"))],
)
def test_logits_with_an_adapter_are_those_of_the_merged_kernels(name, method):
    model, params = adapted.make(VARIANTS[name], ALL)
    batch = adapted.batch(model, method)
    base = models.build(model.config)
    merged = lora.merged(params, ALL.scale)
    ours = logits(model, params, batch)
    np.testing.assert_allclose(ours, logits(base, merged, batch), atol=1e-5)
    without = logits(base, adapted.without_adapter(params), batch)
    assert np.abs(ours - without).max() > 0.1


@pytest.mark.parametrize("name", DISTINCT)
def test_scanned_and_rematerialised_layers_have_the_same_gradients(name):
    """Also where only the first layers have an adapter, so that layers are of two kinds."""
    adapter = Lora(2, 2.0, r"layers_0/.*attention/query")
    plain, params = adapted.make(VARIANTS[name], adapter)
    scanned = models.build(plain.config, scan_layers=True, remat="full", lora=adapter)
    batch = adapted.batch(plain)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(model, params):
        return jax.grad(lambda params: prompt_in_decoder.loss(model, params, batch)[0])(params)

    one, other = gradient(plain, params), gradient(scanned, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), one, other)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in adapted.matrices(one).values())


def theirs(model, adapter):
    """The model with the adapter by qwix. Its expressions match whole paths of modules."""
    qwix = pytest.importorskip("qwix")
    provider = qwix.LoraProvider(
        module_path=r".*attention/(query|value)", rank=adapter.rank, alpha=adapter.alpha
    )
    methods = ("encode", "project_cross_attention", "decode", "logits")
    return qwix.apply_lora_to_model(models.build(model.config), provider, methods=methods)


@pytest.mark.parametrize("name", ["t5", "bart", "t5gemma", "t5gemma2"])
def test_names_shapes_logits_and_gradients_are_those_of_qwix(name):
    ours, params = adapted.make(VARIANTS[name], QUERIES_AND_VALUES)
    other = theirs(ours, QUERIES_AND_VALUES)
    batch = adapted.batch(ours)

    def shapes(model):
        return jax.tree.map(lambda leaf: leaf.shape, models.abstract_params(model))

    assert shapes(ours) == shapes(other)

    def loss(model, params):
        return prompt_in_decoder.loss(model, params, batch)[0]

    one, of_one = jax.jit(jax.value_and_grad(functools.partial(loss, ours)))(params)
    two, of_two = jax.jit(jax.value_and_grad(functools.partial(loss, other)))(params)
    assert float(one) == pytest.approx(float(two), abs=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), of_one, of_two)


def test_an_adapter_starts_as_in_peft():
    """A uniform within the inverse square root of its inputs, B zero: the model is the base."""
    adapter = Lora(8, 8.0, "kernel$")
    model = models.build(VARIANTS["t5"] | {"d_model": 64}, lora=adapter)
    flat = flatten_dict(models.init_params(model, jax.random.key(0)))
    a = flat["encoder", "layers_0", "feed_forward", "wi", lora.A]
    assert a.shape == (64, 8)
    assert 0.11 < np.abs(a).max() <= 1 / np.sqrt(64)
    assert np.std(a) == pytest.approx(1 / np.sqrt(3 * 64), rel=0.1)
    assert not any(np.any(leaf) for path, leaf in flat.items() if path[-1] == lora.B)
    base = models.init_params(models.build(model.config), jax.random.key(0))
    own = {path: leaf for path, leaf in flat.items() if not lora.is_adapter(path)}
    jax.tree.map(np.testing.assert_array_equal, unflatten_dict(own), base)


@pytest.mark.parametrize("name", ["t5", "bart", "t5gemma"])
def test_an_adapter_of_zeros_changes_no_bit_in_bfloat16(name):
    model = models.build(VARIANTS[name], "bfloat16", lora=ALL)
    params = models.init_params(model, jax.random.key(0))
    base = models.build(model.config, "bfloat16")
    batch = adapted.batch(model)
    np.testing.assert_array_equal(
        logits(model, params, batch), logits(base, adapted.without_adapter(params), batch)
    )


def test_matrices_have_the_logical_axes_of_their_kernel():
    axes = flatten_dict(models.logical_axes(models.build(VARIANTS["t5"], lora=ALL)))
    query = ("encoder", "layers_0", "self_attention", "query")
    assert axes[(*query, "kernel")] == PartitionSpec("embed", "heads")
    assert axes[(*query, lora.A)] == PartitionSpec("embed", "rank")
    assert axes[(*query, lora.B)] == PartitionSpec("rank", "heads")


def test_only_training_drops_inputs_of_an_adapter():
    """Half of the inputs of A, at twice their size: the mean over keys is the output without."""
    adapter = Lora(4, 8.0, "cross_attention/value/kernel$", dropout=0.5)
    model, params = adapted.make(VARIANTS["t5"], adapter)
    sure = models.build(model.config, lora=Lora(4, 8.0, adapter.targets))
    documents = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 16)), jnp.float32)

    def values(model, **rngs):
        return model.apply(
            {"params": params}, documents, rngs=rngs, method="project_cross_attention"
        )[0].value

    expected = values(sure)
    np.testing.assert_array_equal(values(model), expected)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: values(model, dropout=key))(keys)
    assert not np.allclose(drawn[0], expected)
    spread = np.std(drawn, axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(np.mean(drawn, axis=0) - expected) < 5 * spread + 1e-5)


def test_a_head_of_its_own_has_a_gradient_in_bfloat16():
    """Computed in chunks, and by a product of its own."""
    config = VARIANTS["t5"] | {"tie_word_embeddings": False}
    model = models.build(config, "bfloat16", lora=Lora(2, 2.0, "lm_head"))
    params = models.init_params(model, jax.random.key(0))
    batch = adapted.batch(model)
    gradient = jax.grad(lambda params: prompt_in_decoder.loss(model, params, batch)[0])(params)
    assert np.abs(gradient["lm_head"][lora.B]).max() > 0


def test_merging_rounds_once_and_stays_on_the_host():
    random = np.random.default_rng(0)
    kernel, a, b = (random.normal(size=s).astype(np.float32) for s in ((6, 5), (6, 2), (2, 5)))
    exact = kernel.astype(float) + 0.5 * a.astype(float) @ b.astype(float)
    for one in (kernel, jnp.asarray(kernel)):
        merged = lora.merged_kernel(one, a, b, 0.5)
        assert type(merged) is type(one)
        np.testing.assert_allclose(merged, exact, atol=1e-6)
        half = lora.merged_kernel(one, a, b, 0.5, jnp.bfloat16)
        np.testing.assert_array_equal(
            np.asarray(half, np.float32), np.asarray(merged).astype(jnp.bfloat16).astype(np.float32)
        )
