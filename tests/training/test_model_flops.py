"""MFU from operations counted by hand and a pretended peak rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import chips, models, sharding
from pid_jax.data.batching import Batch
from pid_jax.training import model_flops
from pid_jax.training.model_flops import ModelFlops
from tests.helpers.tiny_t5 import TINY

B, S, P, L, T = 3, 8, 2, 4, 5
TARGET_TOKENS = 11


def batch():
    def of(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    return Batch(
        documents=of(jnp.int32, B, S),
        document_mask=of(jnp.bool_, B, S),
        prompts=of(jnp.int32, B, P, L),
        prompt_mask=of(jnp.bool_, B, P, L),
        targets=of(jnp.int32, B, P, T),
        target_mask=of(jnp.bool_, B, P, T),
    )


def by_hand(config):
    """A T5 of one feed-forward kernel in and one out, multiplications times two."""
    d, f, v = config["d_model"], config["d_ff"], config["vocab_size"]
    heads = config["num_heads"] * config["d_kv"]
    rows = P * (L + T - 1)  # of a document: prompts, and targets without the last token
    encoder_layer = 4 * S * d * heads + 2 * S * S * heads + 2 * S * d * f
    of_documents = 2 * S * d * heads  # keys and values, once for all prompts
    decoder_layer = (
        (4 * rows * d * heads + 2 * rows * (L + T - 1) * heads)  # self-attention
        + (2 * rows * d * heads + 2 * rows * S * heads)  # cross-attention
        + 2 * rows * d * f
    )
    layers = config["num_layers"] * encoder_layer
    layers += config["num_decoder_layers"] * (of_documents + decoder_layer)
    forward = 2 * (B * layers + TARGET_TOKENS * d * v)
    return 3 * forward  # the backward pass has two products for each


def test_operations_are_those_counted_by_hand():
    config = {**TINY, "feed_forward_proj": "relu", "num_layers": 2, "num_decoder_layers": 3}
    model = models.build(config)
    flops = ModelFlops(model, models.abstract_params(model))
    counted = flops.of_step(batch(), TARGET_TOKENS)
    assert counted == by_hand(config)
    assert flops.of_step(batch(), TARGET_TOKENS) == counted


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_rematerialisation_repeats_does_not_count(remat):
    plain, repeated = models.build(TINY), models.build(TINY, remat=remat)
    expected = ModelFlops(plain, models.abstract_params(plain)).of_step(batch(), TARGET_TOKENS)
    counted = ModelFlops(repeated, models.abstract_params(plain)).of_step(batch(), TARGET_TOKENS)
    assert counted == expected


def test_mfu_is_the_share_of_the_peak_rate_of_all_devices(monkeypatch):
    mesh = sharding.make_mesh()
    assert mesh.devices.flat[0].device_kind == "cpu"
    assert model_flops.utilisation(1e12, 1.0, mesh) is None
    monkeypatch.setattr(chips, "peak_flops_per_second", {"cpu": 4e12}.get)
    # 6 TFLOP in 3 s are 2 TFLOP/s.
    assert model_flops.utilisation(6e12, 3.0, mesh) == pytest.approx(0.5 / mesh.size)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v4", 275e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("TPU v7", None),
        ("cpu", None),
    ],
)
def test_peak_rates_by_the_names_of_jax(kind, peak):
    assert chips.peak_flops_per_second(kind) == peak


def test_real_arrays_count_as_their_shapes():
    model = models.build(TINY)
    arrays = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), batch())
    params = models.init_params(model, jax.random.key(0))
    counted = ModelFlops(model, params).of_step(jax.device_put(arrays), TARGET_TOKENS)
    assert counted == ModelFlops(model, params).of_step(batch(), TARGET_TOKENS)
