"""FLOPs from shapes, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pid_jax import flops, models, prompt_in_decoder
from pid_jax.data.batching import Batch


def count(function, *arguments):
    return flops.count(jax.make_jaxpr(function)(*arguments))


def test_a_product_is_two_operations_for_each_multiplication() -> None:
    assert count(jnp.matmul, jnp.zeros((3, 5)), jnp.zeros((5, 7))) == 2 * 3 * 5 * 7


def test_a_batched_product_counts_its_batch() -> None:
    batched = count(
        lambda a, b: jnp.einsum("bik,bjk->bij", a, b), jnp.zeros((4, 3, 5)), jnp.zeros((4, 6, 5))
    )
    assert batched == 2 * 4 * 3 * 6 * 5


def test_a_scan_counts_every_iteration_and_a_while_loop_one() -> None:
    weights = jnp.zeros((12, 8, 8))

    def scanned(x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    def looped(x, last):
        return jax.lax.fori_loop(0, last, lambda i, x: x @ weights[i], x)

    assert count(scanned, jnp.zeros((2, 8))) == 12 * 2 * 2 * 8 * 8
    assert count(looped, jnp.zeros((2, 8)), 5) == 2 * 2 * 8 * 8


def test_of_branches_the_largest_counts() -> None:
    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert count(branches, jnp.zeros((4, 4))) == 2 * 2 * 4**3


def test_a_gradient_has_two_further_products() -> None:
    def loss(w, x):
        return jnp.sum((x @ w) ** 2)

    gradient = count(jax.grad(loss, argnums=(0, 1)), jnp.zeros((5, 7)), jnp.zeros((3, 5)))
    assert gradient == 3 * 2 * 3 * 5 * 7


def test_a_convolution_counts_its_window() -> None:
    convolved = count(
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "SAME"),
        jnp.zeros((2, 3, 16)),
        jnp.zeros((4, 3, 5)),
    )
    assert convolved == 2 * (2 * 4 * 16) * 3 * 5


@pytest.mark.parametrize("estimate", [None, pl.CostEstimate(17, 0, 0)])
def test_a_pallas_kernel_counts_its_estimate_or_its_grid(estimate) -> None:
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    def product(x, y):
        return pl.pallas_call(
            kernel,
            jax.ShapeDtypeStruct((64, 32), jnp.float32),
            grid=(4,),
            in_specs=[pl.BlockSpec((16, 8), lambda i: (i, 0)), pl.BlockSpec((8, 32))],
            out_specs=pl.BlockSpec((16, 32), lambda i: (i, 0)),
            cost_estimate=estimate,
            interpret=True,
        )(x, y)

    counted = count(product, jnp.zeros((64, 8)), jnp.zeros((8, 32)))
    assert counted == (17 if estimate else 2 * 64 * 8 * 32)


def test_cudnn_attention_counts_its_products() -> None:
    b, t, s, n, h = 2, 128, 64, 3, 64
    query, key = jnp.zeros((b, t, n, h), jnp.bfloat16), jnp.zeros((b, s, n, h), jnp.bfloat16)

    def attention(query, key):
        return jax.nn.dot_product_attention(query, key, key, implementation="cudnn")

    def loss(query, key):
        return attention(query, key).sum()

    try:
        forward = count(attention, query, key)
    except RuntimeError as error:
        pytest.skip(f"tracing needs a CUDA build of JAX: {error}")
    product = 2 * b * n * t * s * h
    assert forward == 2 * product
    assert count(jax.grad(loss, argnums=(0, 1)), query, key) == 2 * product + 5 * product


def test_flops_of_t5_by_its_formula() -> None:
    """Products of T5 in a loss without dropout, summed by hand over its layers."""
    d, f, layers, vocabulary, b, s, p, z, t = 16, 32, 3, 40, 2, 10, 4, 3, 5
    model = models.build(
        {
            "model_type": "t5",
            "vocab_size": vocabulary,
            "d_model": d,
            "d_kv": 4,
            "d_ff": f,
            "num_layers": layers,
            "num_decoder_layers": layers,
            "num_heads": 4,
        }
    )

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = Batch(
        of(jnp.int32, b, s),
        of(jnp.bool_, b, s),
        of(jnp.int32, b, p, z),
        of(jnp.bool_, b, p, z),
        of(jnp.int32, b, p, t),
        of(jnp.bool_, b, p, t),
    )
    counted = count(
        lambda params, batch: prompt_in_decoder.target_log_probabilities(model, params, batch),
        models.abstract_params(model),
        batch,
    )
    length = z + t - 1
    rows = b * p * length
    encoder = layers * (b * s * (4 * d * d + 2 * d * f) + 2 * b * s * s * d)
    cross = layers * (2 * b * s * d * d + 2 * rows * d * d + 2 * rows * s * d)
    decoder = layers * (rows * (4 * d * d + 2 * d * f) + 2 * rows * length * d)
    head = b * p * t * d * vocabulary
    assert counted == 2 * (encoder + cross + decoder + head)
