"""Every family's gradient with the settings of a GPU and of a TPU, traced on a CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.settings import BY_PLATFORM, compiling_for
from pid_jax.data.batching import Batch
from tests.helpers.tiny_families import VARIANTS

DROPOUT = ("dropout_rate", "dropout", "attention_dropout", "activation_dropout")
"""The names of all families."""


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_the_loss_has_the_shapes_of_the_parameters(
    monkeypatch, variant, platform, rate
):
    if platform == "gpu":  # this machine may lack cuDNN
        blocks = dataclasses.replace(BY_PLATFORM["gpu"], document_kernel="xla")
        monkeypatch.setitem(BY_PLATFORM, "gpu", blocks)
    model = models.build(VARIANTS[variant] | dict.fromkeys(DROPOUT, rate))
    params = models.abstract_params(model)
    prompts = jax.ShapeDtypeStruct((2, 3, 4), jnp.int32), jax.ShapeDtypeStruct((2, 3, 4), jnp.bool_)
    documents = jax.ShapeDtypeStruct((2, 16), jnp.int32), jax.ShapeDtypeStruct((2, 16), jnp.bool_)
    batch = Batch(*documents, *prompts, *prompts)

    def loss(params, batch):
        return prompt_in_decoder.loss(model, params, batch, dropout_key=jax.random.key(0))[0]

    with compiling_for(platform):
        gradients = jax.eval_shape(jax.grad(loss), params, batch)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)
