"""Packed rows give what one row for each prompt gives, in every family and on every backend."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.settings import BY_PLATFORM, compiling_for
from pid_jax.data.batching import collate, shape_of
from pid_jax.data.packing import PackedShape, collate_packed
from pid_jax.data.tokenizing import TokenizedExample
from tests.helpers.tiny_families import VARIANTS

DROPOUT = ("dropout_rate", "dropout", "attention_dropout", "activation_dropout")
SPECIAL = {"pad_token_id": 0, "decoder_start_token_id": 2}


def example(name: str, document: int, subtasks: list[tuple[int, int]]) -> TokenizedExample:
    """An example of these lengths: of the document, and of each prompt and target."""
    random = np.random.default_rng(len(name) + document)

    def tokens(count: int) -> list[int]:
        return random.integers(3, 60, count).tolist()

    prompts = [tokens(prompt) for prompt, _ in subtasks]
    return TokenizedExample(
        name, tokens(document), prompts, [tokens(target) for _, target in subtasks]
    )


EXAMPLES = [
    example("four", 14, [(3, 4), (0, 1), (5, 2), (2, 7)]),
    example("one", 9, [(6, 3)]),
    example("three", 16, [(1, 1), (2, 0), (4, 3)]),
]
"""The lengths of their segments: 7, 1, 7, 9; 9; 2, none, 7."""
UNPACKED = collate(EXAMPLES, shape_of(EXAMPLES), **SPECIAL)
PACKED = collate_packed(EXAMPLES, PackedShape(3, 32, 2, 16, 15), **SPECIAL)


def model_of(variant: str, **changed: object) -> models.EncoderDecoder:
    return models.build(VARIANTS[variant] | dict.fromkeys(DROPOUT, 0.0) | changed)


def loss_and_gradient(model, params, batch):
    def loss(params):
        return prompt_in_decoder.loss(model, params, batch, label_smoothing=0.1, z_loss=1e-2)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packing_changes_neither_the_loss_nor_the_gradient(variant):
    model = model_of(variant)
    params = models.init_params(model, jax.random.key(0))
    (expected, metrics), gradient = loss_and_gradient(model, params, UNPACKED)
    (packed, of_packed), packed_gradient = loss_and_gradient(model, params, PACKED)
    np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-5)
    assert metrics.target_tokens == of_packed.target_tokens == 21
    assert metrics.subtasks == of_packed.subtasks == 7
    assert metrics.correct_tokens == of_packed.correct_tokens
    assert metrics.exact_matches == of_packed.exact_matches
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 1e-3
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(packed_gradient), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("variant", ["t5", "bart", "t5gemma", "t5gemma2"])
def test_the_settings_of_accelerators_give_the_loss_and_gradient_of_a_cpu(
    monkeypatch, variant, platform, scan_layers
):
    if platform == "gpu":  # this machine may lack cuDNN
        blocks = dataclasses.replace(BY_PLATFORM["gpu"], document_kernel="xla")
        monkeypatch.setitem(BY_PLATFORM, "gpu", blocks)
    model = models.build(VARIANTS[variant] | dict.fromkeys(DROPOUT, 0.0), scan_layers=scan_layers)
    params = models.init_params(model, jax.random.key(0))
    (expected, _), gradient = loss_and_gradient(model, params, PACKED)

    def loss(params):
        with compiling_for(platform):
            return prompt_in_decoder.loss(model, params, PACKED, label_smoothing=0.1, z_loss=1e-2)[
                0
            ]

    value, other = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
