"""Attention in blocks of queries, against full attention and against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.backends import blockwise_attention as module
from pid_jax.backends.blockwise_attention import blockwise_attention, full_attention
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST
from tests.helpers.attention_written_out import BATCH, CAP, HEADS, SCALE, arrays, written_out
from tests.helpers.quick_compilation import compile_fully


@pytest.mark.parametrize(
    ("groups", "reach", "block"),
    [(2, (2, 0), 8), (6, (0, 3), 8), (2, (5, 4), 64), (6, (40, 40), 8), (3, None, 8)],
)
@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_blocks_see_what_is_within_reach(groups, reach, block, platform, monkeypatch):
    """Windows are cut off at either end or contain all keys. The last block is not full."""
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    monkeypatch.setattr(module, "BLOCK_SCORES", 1)  # elsewhere, blocks of the least size: 16
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arguments, **branches: branches[platform](*arguments)
    )
    query, layer, mask = arrays(37, groups)
    distance = np.arange(37) - np.arange(37)[:, None]
    before, after = reach or (37, 37)
    window = (distance >= -before) & (distance <= after)
    seen = mask[:, None, :] & window
    arguments = jax.device_put((query, layer, mask))
    attended = blockwise_attention(*arguments, scale=SCALE, soft_cap=CAP, reach=reach)
    some = seen.any(-1)  # of padding, some sees nothing at all
    expected = written_out(query, layer, seen | ~some[..., None])
    np.testing.assert_allclose(
        np.where(some[:, None, :, None], attended, 0),
        np.where(some[:, None, :, None], expected, 0),
        atol=1e-5,
    )


@pytest.mark.optimised
def test_short_windows_read_few_keys():
    """No array of the compiled program has as many entries as queries times keys."""
    query, layer, mask = arrays(4096, 2)
    run = jax.jit(lambda *arguments: blockwise_attention(*arguments, reach=(16, 16)))
    text = compile_fully(run.lower(query, layer, mask)).as_text()
    assert "f32[1,512,544]" in text or "f32[512,544]" in text
    assert "512,4096]" not in text


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.integers(1, 40),
    groups=st.sampled_from([1, 2, 3, 6]),
    block=st.integers(1, 41),
    layout=st.sampled_from([ATTENDED_FIRST, ATTENDED_LAST]),
    soft_cap=st.sampled_from([None, CAP]),
    reach=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    biased=st.booleans(),
    platform=st.sampled_from(["cpu", "default"]),
)
def test_blocks_give_what_full_attention_gives(
    seed, length, groups, block, layout, soft_cap, reach, biased, platform
):
    query, layer, mask = arrays(length, groups, layout)
    bias = None
    if biased:
        random = np.random.default_rng(seed)
        bias = jnp.asarray(random.normal(size=(HEADS, 2 * length - 1)), jnp.float32)
    options = {"scale": SCALE, "soft_cap": soft_cap, "reach": reach}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "CPU_BLOCK", block)
        patched.setattr(module, "BLOCK_SCORES", BATCH * HEADS * length * block)
        patched.setattr(
            jax.lax, "platform_dependent", lambda *arguments, **by: by[platform](*arguments)
        )
        run = jax.jit(lambda *arguments: blockwise_attention(*arguments, **options))
        attended = run(query, layer, mask, bias)
    expected = full_attention(jnp.asarray(query), layer, jnp.asarray(mask), bias, **options)
    # A query of padding may see no key at all. What it gives does not matter.
    real = np.broadcast_to(mask[:, None, :, None], query.shape)
    np.testing.assert_allclose(attended[real], expected[real], atol=1e-5)
