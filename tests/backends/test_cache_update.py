"""The write of new keys and values into the caches of all layers in one kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.backends.cache_update import write_step, write_step_reference
from pid_jax.backends.layouts import ATTENDED_FIRST, KeyValue
from pid_jax.backends.settings import BY_PLATFORM


def caches(random, layers, slots, heads=3):
    def one():
        return jnp.asarray(random.normal(size=(2, 4, heads, slots, 16)), jnp.float32)

    return tuple(KeyValue(one(), one(), ATTENDED_FIRST) for _ in range(layers))


@pytest.mark.parametrize("slot", [0, 3, 6])
@pytest.mark.parametrize(("count", "kernels"), [(1, 1), (2, 0)])
def test_only_the_slot_of_the_new_token_changes(slot, count, kernels, monkeypatch):
    monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["gpu"])
    random = np.random.default_rng(slot)
    old, new = caches(random, 3, 8), caches(random, 3, count)
    written = write_step(old, new, jnp.int32(slot))
    program = str(jax.make_jaxpr(write_step)(old, new, jnp.int32(slot)))
    assert program.count("pallas_call[") == kernels
    for before, token, after in zip(old, new, written, strict=True):
        for name in ("key", "value"):
            expected = np.array(getattr(before, name))
            expected[:, :, :, slot : slot + count] = getattr(token, name)
            np.testing.assert_array_equal(getattr(after, name), expected)


def test_a_cpu_writes_layer_by_layer():
    random = np.random.default_rng(0)
    old, new = caches(random, 2, 8), caches(random, 2, 1)
    tuned = jax.make_jaxpr(write_step)(old, new, jnp.int32(1))
    assert str(tuned) == str(jax.make_jaxpr(write_step_reference)(old, new, jnp.int32(1)))
