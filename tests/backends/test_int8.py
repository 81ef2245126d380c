"""Weights in 8 bits: the error of products, decoding of every family, and the bytes saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models
from pid_jax.backends import int8
from pid_jax.backends.settings import BY_PLATFORM, compiling_for
from pid_jax.data.batching import Batch
from pid_jax.decoding.greedy import decode_greedily
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.models.layers import TokenEmbeddings
from pid_jax.prompt_in_decoder import encode
from tests.helpers.several_devices import result_of
from tests.helpers.tiny_families import DISTINCT, VARIANTS
from tests.helpers.tiny_t5 import TINY

DRAWN = np.random.default_rng(0)
KERNEL = DRAWN.normal(size=(48, 20)).astype(np.float32)
INPUTS = jnp.asarray(DRAWN.normal(size=(3, 5, 48)), jnp.float32)


def half_steps(weights: np.ndarray, axis: int) -> np.ndarray:
    """The most that a weight of each channel changes: 254 half steps from -largest to largest."""
    return np.abs(weights).max(axis=axis) / 254


def quantized(kernel: np.ndarray) -> tuple[jax.Array, jax.Array]:
    module = int8.quantize({"layer": {"kernel": jnp.asarray(kernel)}})["layer"]
    return module["kernel"], module["kernel_scale"]


def test_hand_worked_integers():
    kernel, scale = quantized(np.array([[12.7, 0.0], [-6.0, 0.0], [0.26, 0.0]], np.float32))

    np.testing.assert_array_equal(kernel, [[127, 0], [-60, 0], [3, 0]])
    np.testing.assert_allclose(scale, [0.1, 1.0], rtol=1e-6)
    assert (kernel.dtype, scale.dtype) == (jnp.int8, jnp.float32)


def test_a_weight_changes_by_at_most_half_a_step():
    kernel, scale = quantized(KERNEL)

    error = np.abs(np.asarray(kernel) * np.asarray(scale) - KERNEL)
    assert (error <= half_steps(KERNEL, axis=0) * (1 + 1e-5)).all()


def test_a_product_changes_by_at_most_half_a_step_per_weight():
    error = np.abs(int8.int8_matmul(INPUTS, *quantized(KERNEL), jnp.float32) - INPUTS @ KERNEL)

    bound = np.abs(INPUTS).sum(axis=-1, keepdims=True) * half_steps(KERNEL, axis=0)
    assert (error <= bound + 1e-5).all()
    assert error.max() > 0


def test_the_product_of_heads_is_that_of_their_features_side_by_side():
    heads = INPUTS.reshape(3, 5, 4, 12).swapaxes(1, 2)

    product = int8.int8_matmul_of_heads(heads, *quantized(KERNEL), jnp.float32)

    expected = int8.int8_matmul(INPUTS, *quantized(KERNEL), jnp.float32)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)


def test_vmapped_products_are_one_product():
    kernel, scale = quantized(KERNEL)

    def product(x: jax.Array) -> jax.Array:
        return int8.int8_matmul(x, kernel, scale, jnp.float32)

    np.testing.assert_allclose(jax.vmap(product)(INPUTS), product(INPUTS), rtol=1e-5, atol=1e-5)
    dots = [e for e in jax.make_jaxpr(jax.vmap(product))(INPUTS).eqns if "dot" in str(e.primitive)]
    assert [e.invars[1].aval.shape for e in dots] == [KERNEL.shape]


def test_embeddings_and_the_tied_head_have_a_scale_per_token():
    table = (DRAWN.normal(size=(9, 16)) * np.arange(1, 10)[:, None]).astype(np.float32)
    hidden = INPUTS[..., :16]
    tokens = jnp.array([[0, 8], [3, 3]], jnp.int32)
    module = int8.quantize({"shared": {"embedding": jnp.asarray(table)}})["shared"]
    arrays = module["embedding"], module["embedding_scale"]
    steps = half_steps(table, axis=1)

    error = np.abs(int8.int8_embeddings(tokens, *arrays, jnp.float32) - table[tokens])
    assert (error <= steps[tokens][..., None] * (1 + 1e-5)).all()
    error = np.abs(int8.int8_head(hidden, *arrays, jnp.float32) - hidden @ table.T)
    assert (error <= np.abs(hidden).sum(axis=-1, keepdims=True) * steps + 1e-4).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tokens_out_of_range_are_those_of_a_table_of_floats(dtype):
    # A weight of 127 scales is rounded without an error.
    table = np.arange(1.0, 10.0, dtype=np.float32)[:, None] * np.array([127.0, -127.0, 0.0])
    table = jnp.asarray(table, jnp.float32)
    layer = TokenEmbeddings(9, 3, stddev=1.0, dtype=dtype)
    floats = {"params": {"embedding": table}}
    integers = {"params": int8.quantize({"shared": floats["params"]})["shared"]}
    expected = {0: table[0], 8: table[8], -1: table[8], -9: table[0]}
    expected |= dict.fromkeys((9, 14, -10, -100), np.full(3, np.nan))
    tokens = jnp.array(list(expected), jnp.int32)

    for params in (floats, integers):
        rows = layer.apply(params, tokens)
        assert rows.dtype == dtype
        expected_rows = jnp.asarray(np.stack(list(expected.values())), dtype)
        np.testing.assert_array_equal(
            rows.astype(jnp.float32), expected_rows.astype(jnp.float32), strict=True
        )


INTERPRETED = [
    pytest.param(name, "gpu", marks=pytest.mark.slow) for name in ("t5", "bart", "t5gemma")
]


@pytest.mark.parametrize(
    ("name", "platform"),
    [("t5", "cpu"), ("t5gemma2", "cpu"), *((name, "tpu") for name in DISTINCT), *INTERPRETED],
)
def test_every_family_decodes_as_with_the_rounded_weights_in_float32(name, platform, monkeypatch):
    model = models.build(VARIANTS[name])
    params = models.init_params(model, jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf + 0.02, params)
    batch = batch_of_two()
    with monkeypatch.context() as patched:
        if platform == "gpu":
            # The settings without the platform: a CPU interprets the kernels.
            patched.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["gpu"])
        with compiling_for("tpu" if platform == "tpu" else None):
            integers = model.decoding_params(model.int8_params(params))
            tokens, scores = decoded(model, integers, batch)
    expected_tokens, expected_scores = decoded(model, rounded(integers), batch)

    is_t5 = name == "t5" or name.startswith("longt5")
    assert ("query_key_value" in str(jax.tree.structure(integers))) == (is_t5 and platform != "cpu")
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_joined_kernels_are_rounded_once_with_the_scale_of_the_norm(platform):
    model = models.build(TINY)
    params = models.init_params(model, jax.random.key(0))
    layer = params["decoder"]["layers_1"]
    for name in ("self_attention_norm", "cross_attention_norm"):
        layer[name]["scale"] = jnp.asarray(DRAWN.uniform(0.1, 3.0, 16), jnp.float32)
    own, cross = layer["self_attention"], layer["cross_attention"]
    kernels = [own[part]["kernel"] for part in ("query", "key", "value")]

    with compiling_for(platform):
        integers = model.int8_params(params)["decoder"]["layers_1"]

    assert not {"self_attention_norm", "cross_attention_norm"} & set(integers)
    for module, expected in (
        (
            integers["self_attention"]["query_key_value"],
            np.concatenate(kernels, axis=1) * layer["self_attention_norm"]["scale"][:, None],
        ),
        (
            integers["cross_attention"]["query"],
            cross["query"]["kernel"] * layer["cross_attention_norm"]["scale"][:, None],
        ),
    ):
        assert module["kernel"].dtype == jnp.int8
        error = np.abs(np.asarray(module["kernel"]) * np.asarray(module["kernel_scale"]) - expected)
        assert (error <= half_steps(np.asarray(expected), axis=0) * (1 + 1e-4)).all()


def batch_of_two():
    return Batch(
        documents=jnp.asarray(DRAWN.integers(3, 90, (2, 12)), jnp.int32),
        document_mask=jnp.ones((2, 12), bool),
        prompts=jnp.asarray(DRAWN.integers(3, 90, (2, 3, 4)), jnp.int32),
        prompt_mask=jnp.ones((2, 3, 4), bool),
        targets=jnp.zeros((2, 3, 0), jnp.int32),
        target_mask=jnp.zeros((2, 3, 0), bool),
    )


def decoded(model, params, batch):
    encoded = encode(model, params, batch.documents, batch.document_mask)
    outputs = decode_greedily(
        model, params, encoded, batch.prompts, batch.prompt_mask, max_new_tokens=5
    )
    return outputs.tokens, outputs.scores


def rounded(params):
    """The same weights as floats, by the definition of the format."""
    floats = {}
    for name, child in params.items():
        if isinstance(child, dict):
            floats[name] = rounded(child)
        elif name == "kernel":
            floats[name] = child.astype(jnp.float32) * params["kernel_scale"][None]
        elif name == "embedding" and "embedding_scale" in params:
            scale = params["embedding_scale"][:, None]
            floats[name] = child.astype(jnp.float32) * scale
        elif not name.endswith("_scale"):
            floats[name] = child
    return floats


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_are_one_per_weight_and_four_per_channel(name):
    params = models.init_params(models.build(VARIANTS[name]), jax.random.key(0))
    expected = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [part.key for part in path]
        if names[-1] == "kernel":
            expected += leaf.size + 4 * leaf.shape[1]
        elif names[-1] == "embedding" and len(names) == 2:
            expected += leaf.size + 4 * leaf.shape[0]
        else:
            assert leaf.ndim < 2 or "position" in "/".join(names) or names == ["final_logits_bias"]
            expected += leaf.nbytes

    assert sum(leaf.nbytes for leaf in jax.tree.leaves(int8.quantize(params))) == expected


SHARDED = """
import json, sys
import jax
from jax.sharding import NamedSharding, PartitionSpec
from pid_jax import models, sharding
from pid_jax.backends import int8
from tests.helpers.tiny_t5 import TINY

mesh = sharding.make_mesh(data=1, tensor=2)
model = models.build(TINY)
shardings = sharding.param_shardings(mesh, models.logical_axes(model))
params = jax.device_put(models.init_params(model, jax.random.key(0)), shardings)
feed_forward = int8.quantize(params)["decoder"]["layers_0"]["feed_forward"]
scale = feed_forward["wi"]["kernel_scale"]
split = NamedSharding(mesh, PartitionSpec("tensor"))
kernels = [feed_forward[name]["kernel"] for name in ("wi", "wo")]
json.dump(
    [
        [one.sharding.shard_shape(one.shape) for one in kernels],
        scale.sharding.is_equivalent_to(split, scale.ndim),
    ],
    sys.stdout,
)
"""


def test_parameters_in_8_bits_stay_sharded():
    assert result_of(SHARDED, devices=2) == [[[16, 12], [12, 16]], True]


def test_a_checkpoint_loads_in_8_bits_and_is_not_saved(tmp_path):
    model = models.build(TINY)
    PidModel(model, models.init_params(model, jax.random.key(0))).save_pretrained(tmp_path / "a")

    loaded = PidModel.from_pretrained(tmp_path / "a", dtype="bfloat16", weights="int8")
    exact = PidModel.from_pretrained(tmp_path / "a")

    assert loaded.model.dtype == jnp.bfloat16
    assert loaded.params["encoder"]["final_norm"]["scale"].dtype == jnp.bfloat16
    kernel = exact.params["decoder"]["layers_1"]["feed_forward"]["wo"]["kernel"]
    own = loaded.params["decoder"]["layers_1"]["feed_forward"]["wo"]
    error = np.abs(np.asarray(own["kernel"]) * np.asarray(own["kernel_scale"]) - kernel)
    # The weights are rounded from float32, not from bfloat16.
    assert (error <= half_steps(np.asarray(kernel), axis=0) * (1 + 1e-5)).all()
    with pytest.raises(UserError, match="8 bits: load the checkpoint without weights"):
        loaded.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_generate_and_score_agree_in_8_bits(tmp_path):
    model = models.build(TINY)
    PidModel(model, models.init_params(model, jax.random.key(0))).save_pretrained(tmp_path)
    loaded = PidModel.from_pretrained(tmp_path, weights="int8")
    documents, prompts = [[5, 6, 7]], [[[8, 9], [10]]]

    answers = loaded.generate(documents, prompts, max_new_tokens=4, min_new_tokens=4)
    targets = [[answer.tokens for answer in row] for row in answers]

    scores = loaded.score(documents, prompts, targets)
    expected = [[answer.score for answer in row] for row in answers]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="weights='int4' is not supported; supported: 'int8', None"):
        PidModel.from_pretrained(tmp_path, weights="int4")


@pytest.mark.optimised
@pytest.mark.parametrize("product", [int8.int8_matmul, int8.int8_head])
def test_a_loop_on_a_cpu_has_no_second_copy_of_a_kernel(product):
    def loop(x, kernel, scale):
        def step(_, x):
            return jnp.tanh(product(x, kernel, scale, jnp.float32)[:, :192])

        return jax.lax.fori_loop(0, 8, step, x)

    shape = (192, 256) if product is int8.int8_matmul else (256, 192)
    kernel = jnp.ones(shape, jnp.int8)
    text = jax.jit(loop).lower(jnp.ones((8, 192)), kernel, jnp.ones(256)).compile().as_text()

    [carried] = [line for line in text.splitlines() if " while(" in line]
    stored = f"s8[{shape[0]},{shape[1]}]"
    assert stored in carried
    # Neither another dtype nor another layout.
    for copy in ("f32[192,256]", "f32[256,192]", f"s8[{shape[1]},{shape[0]}]"):
        assert copy not in carried
    entry = text[text.index("ENTRY") :]
    assert not [line for line in entry.splitlines() if f" = {stored}" in line and "copy(" in line]


def test_the_head_contracts_the_table_as_it_is_stored():
    def head(x, table, scale):
        return int8.int8_head(x, table, scale, jnp.float32)

    arguments = jnp.ones((4, 8)), jnp.ones((9, 8), jnp.int8), jnp.ones(9)
    steps = jax.make_jaxpr(head)(*arguments).eqns
    names = [str(step.primitive) for step in steps]

    assert names.index("optimization_barrier") < names.index("dot_general")
    [product] = [step for step in steps if str(step.primitive) == "dot_general"]
    assert sorted(operand.aval.shape for operand in product.invars) == [(4, 8), (9, 8)]
    tables = [e for e in steps if str(e.primitive) == "transpose" and e.invars[0].aval.size == 72]
    assert tables == []
