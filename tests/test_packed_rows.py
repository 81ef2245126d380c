"""Packed rows give what one row for each prompt gives, in every family and on every backend."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.settings import BY_PLATFORM, compiling_for
from pid_jax.data.batching import collate, shape_of
from pid_jax.data.packing import PackedShape, collate_packed
from pid_jax.data.tokenizing import TokenizedExample
from tests.helpers.tiny_families import DISTINCT, VARIANTS

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


@functools.cache
def of_packed_rows(variant: str):
    """A model, its parameters, and the loss and gradient of packed rows on a CPU."""
    model = model_of(variant)
    params = models.init_params(model, jax.random.key(0))
    return model, params, loss_and_gradient(model, params, PACKED)


@pytest.mark.parametrize("variant", [*DISTINCT, "pegasus"])  # PEGASUS has sinusoids
def test_packing_changes_neither_the_loss_nor_the_gradient(variant):
    model, params, ((packed, of_packed), packed_gradient) = of_packed_rows(variant)
    (expected, metrics), gradient = loss_and_gradient(model, params, UNPACKED)
    np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-5)
    assert metrics.target_tokens == of_packed.target_tokens == 21
    assert metrics.subtasks == of_packed.subtasks == 7
    assert metrics.correct_tokens == of_packed.correct_tokens
    assert metrics.exact_matches == of_packed.exact_matches
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 1e-3
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(packed_gradient), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


@pytest.mark.slow  # the kernels of a TPU are interpreted
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("variant", ["t5", "bart", "t5gemma2"])
def test_the_settings_of_accelerators_give_the_loss_and_gradient_of_a_cpu(
    monkeypatch, variant, platform
):
    if platform == "gpu":  # this machine may lack cuDNN
        blocks = dataclasses.replace(BY_PLATFORM["gpu"], document_kernel="xla")
        monkeypatch.setitem(BY_PLATFORM, "gpu", blocks)
    model, params, ((expected, _), gradient) = of_packed_rows(variant)
    jax.clear_caches()  # or JAX would find traces with the settings of a CPU
    with compiling_for(platform):
        (value, _), other = loss_and_gradient(model, params, PACKED)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)


def test_scanned_layers_keep_segments_apart():
    model = models.build(VARIANTS["t5"] | dict.fromkeys(DROPOUT, 0.0), scan_layers=True)
    params = models.init_params(model, jax.random.key(0))
    expected, metrics = prompt_in_decoder.loss(model, params, UNPACKED)
    loss, of_packed = prompt_in_decoder.loss(model, params, PACKED)
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)
    assert of_packed.exact_matches == metrics.exact_matches


def test_a_token_changes_the_scores_of_its_own_segment_only():
    model = model_of("t5gemma")
    params = models.init_params(model, jax.random.key(1))

    def scores(batch):
        return prompt_in_decoder.packed_log_probabilities(model, params, batch)

    # Of the first document the segments of subtasks 2 and 3 fill a row of 16 tokens.
    tokens = PACKED.tokens.copy()
    (row, slot), *_ = np.argwhere((PACKED.segments[0] == 3) & (PACKED.positions[0] == 1))
    tokens[0, row, slot] += 1
    before, after = scores(PACKED), scores(PACKED._replace(tokens=tokens))
    own = np.take_along_axis(PACKED.segments.reshape(3, -1), PACKED.predicting, axis=1)
    own = np.where(PACKED.target_mask, own, 0)
    changed = np.argwhere(np.asarray(before != after))
    assert {(document, own[document, target]) for document, target in changed.tolist()} == {(0, 3)}


def test_a_subtask_is_right_when_all_its_target_tokens_are():
    right = np.ones((3, 15), bool)
    right[0, [0, 5]] = False  # a token of the first target, and the only one of the second's last
    right[~PACKED.target_mask] = False
    correct, present = prompt_in_decoder.correct_subtasks(PACKED, jnp.asarray(right))
    # Targets of 4, 1, 2 and 7 tokens end at 3, 4, 6 and 13.
    assert np.flatnonzero(present[0]).tolist() == [3, 4, 6, 13]
    assert np.flatnonzero(correct[0]).tolist() == [4, 13]
    assert np.asarray(present).sum(axis=1).tolist() == [4, 1, 2]
    assert np.asarray(correct)[1:].sum(axis=1).tolist() == [1, 2]
    of_unpacked = np.asarray(UNPACKED.target_mask)
    assert np.asarray(present).sum() == of_unpacked.any(-1).sum()


def test_dropout_draws_for_every_row():
    """Half of the numbers are dropped: rows with the same tokens have different scores."""
    same = [dataclasses.replace(EXAMPLES[1], prompts=[[7, 8]] * 2, targets=[[9, 10, 11]] * 2)]
    batch = collate_packed(same, PackedShape(1, 16, 2, 5, 6), **SPECIAL)
    model = models.build(VARIANTS["t5"] | {"dropout_rate": 0.5})
    params = models.init_params(model, jax.random.key(0))

    @jax.jit
    def scores(key):
        return prompt_in_decoder.target_scores(model, params, batch, key).log_probability[0]

    without = np.asarray(scores(None))
    np.testing.assert_allclose(without[:3], without[3:], rtol=1e-6)
    dropped = np.asarray(scores(jax.random.key(1)))
    assert np.abs(dropped[:3] - dropped[3:]).max() > 1e-3
