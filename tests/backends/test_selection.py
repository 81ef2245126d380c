"""Top k, argmax and nucleus without a sort, against those with one."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.backends import selection

LOGITS = st.builds(
    lambda seed, rows, size, ties, barred: logits_of(seed, (*rows, size), ties, barred),
    seed=st.integers(0, 2**16),
    rows=st.lists(st.integers(1, 3), max_size=2),
    size=st.integers(1, 300),
    ties=st.booleans(),
    barred=st.sampled_from([0.0, 0.3, 0.9]),
)


def logits_of(seed, shape, ties, barred):
    """Random logits, some of them equal, some barred, in each row one that is not."""
    random = np.random.default_rng(seed)
    values = random.normal(size=shape) * 3
    values = np.round(values) if ties else values
    values[random.random(shape) < barred] = -np.inf
    values[..., random.integers(shape[-1])] = 0.5
    return jnp.asarray(values, jnp.float32)


@settings(max_examples=12, deadline=None)
@given(logits=LOGITS, count=st.integers(1, 20), group=st.integers(1, 20))
def test_the_largest_are_those_of_a_sort(logits, count, group):
    count = min(count, logits.shape[-1])
    values, indices = selection.largest(logits, count, group)
    plain_values, plain_indices = selection.largest_reference(logits, count)
    np.testing.assert_array_equal(values, plain_values)
    finite = np.isfinite(plain_values)  # barred values come in any order
    np.testing.assert_array_equal(indices[finite], plain_indices[finite])


@settings(max_examples=15, deadline=None)
@given(logits=LOGITS)
def test_the_likeliest_is_the_first_of_the_largest(logits):
    np.testing.assert_array_equal(
        selection.likeliest(logits), selection.likeliest_reference(logits)
    )


@settings(max_examples=12, deadline=None)
@given(logits=LOGITS, k=st.integers(1, 400))
def test_top_k_is_that_of_a_sort(logits, k):
    np.testing.assert_array_equal(
        selection.restrict_to_top_k(logits, k), selection.restrict_to_top_k_reference(logits, k)
    )


@settings(max_examples=12, deadline=None)
@given(logits=LOGITS, p=st.floats(0, 1, width=32))
def test_top_p_is_that_of_a_sort(logits, p):
    """The two add probabilities in different orders: where a sum is within rounding of 1 - p,
    either may be right."""
    probabilities = np.sort(np.asarray(jax.nn.softmax(logits, axis=-1), np.float64), axis=-1)
    sums = np.cumsum(probabilities, axis=-1)
    if np.abs(sums - (1 - p)).min() < 1e-5 or p > 1 - 1e-5:
        return
    np.testing.assert_array_equal(
        selection.restrict_to_top_p(logits, p), selection.restrict_to_top_p_reference(logits, p)
    )
