"""Products with a kernel or its transpose, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.backends.matmul import (
    FEW_ROWS,
    matmul,
    matmul_reference,
    with_decoder_transposes,
)


def operands(seed, rows, inputs, outputs, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.normal(size=(*rows, inputs)), dtype)
    kernel = jnp.asarray(random.normal(size=(inputs, outputs)), dtype)
    return x, kernel, kernel.T


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.lists(st.integers(1, 9), max_size=3),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
)
def test_either_kernel_gives_the_same(seed, rows, inputs, outputs):
    x, kernel, transposed = operands(seed, rows, inputs, outputs)
    np.testing.assert_allclose(
        matmul(x, kernel, transposed), matmul_reference(x, kernel), atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_products_are_float32(rows, dtype):
    x, kernel, transposed = operands(0, (rows,), 5, 7, dtype)
    product = matmul(x, kernel, transposed)
    assert product.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)


def test_vmapped_rows_count_as_rows_of_one_product():
    x, kernel, transposed = operands(0, (6, 1), 5, 7)
    run = jax.vmap(matmul, in_axes=(0, None, None))
    np.testing.assert_allclose(run(x, kernel, transposed), matmul_reference(x, kernel), atol=1e-5)
    shapes = str(jax.make_jaxpr(run)(x, kernel, transposed))
    assert "f32[7,8]" in shapes  # all six rows, padded to eight


def test_a_batch_of_kernels_is_refused():
    x, kernel, transposed = operands(0, (6,), 5, 7)
    with pytest.raises(NotImplementedError, match="one kernel"):
        jax.vmap(matmul, in_axes=(0, 0, 0))(
            x[:2], jnp.stack([kernel] * 2), jnp.stack([transposed] * 2)
        )


def test_transposes_stand_beside_the_kernels_that_each_step_reads():
    kernel = jnp.arange(6.0).reshape(2, 3)
    attention = {name: {"kernel": kernel} for name in ("query", "key", "value", "output")}
    layer = {"self_attention": attention, "cross_attention": attention, "norm": {"scale": kernel}}
    changed = with_decoder_transposes({"layers_0": layer, "norm": {"scale": kernel}})
    assert changed["norm"] == {"scale": kernel}
    own, cross = changed["layers_0"]["self_attention"], changed["layers_0"]["cross_attention"]
    assert all("transposed" in dense for dense in own.values())
    np.testing.assert_array_equal(own["key"]["transposed"], kernel.T)
    assert {name for name, dense in cross.items() if "transposed" in dense} == {"query", "output"}
