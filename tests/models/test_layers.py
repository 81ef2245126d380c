"""The product after attention, whose input is head by head, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.backends.settings import compiling_for
from pid_jax.models.layers import Dense

BATCH, HEADS, TOKENS, WIDTH, FEATURES = 2, 3, 4, 5, 7


@pytest.mark.parametrize(
    ("platform", "training", "contracted_axes"),
    [
        ("tpu", False, 2),
        ("tpu", True, 1),
        ("gpu", False, 1),
        ("gpu", True, 1),
        ("cpu", False, 1),
        ("cpu", True, 1),
    ],
)
def test_only_inference_on_a_tpu_contracts_heads_without_merging_them(
    platform: str, training: bool, contracted_axes: int
) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH, HEADS, TOKENS, WIDTH)).astype(np.float32)
    kernel = random.normal(size=(HEADS * WIDTH, FEATURES)).astype(np.float32)
    dense = Dense(FEATURES, ("heads", "embed"), 1.0)
    variables = {"params": {"kernel": jnp.asarray(kernel)}}

    def product(x):
        return dense.apply(variables, x, by_head=True, training=training)

    with compiling_for(platform):
        traced = jax.make_jaxpr(product)(x)
        actual = jax.jit(product)(x)
    (equation,) = [one for one in traced.eqns if one.primitive.name == "dot_general"]
    (contracted, _), _ = equation.params["dimension_numbers"]
    assert len(contracted) == contracted_axes
    merged = x.swapaxes(1, 2).reshape(BATCH, TOKENS, HEADS * WIDTH)
    np.testing.assert_allclose(actual, merged @ kernel, rtol=1e-4, atol=1e-5)
