"""Attention with groups, soft-capping and windows, against the same written out."""

import jax
import numpy as np
import pytest

from pid_jax.models import attention
from pid_jax.models.attention import Source, attend, attend_by_blocks
from pid_jax.models.protocol import KeyValue

BATCH, HEADS, WIDTH = 2, 6, 4
SCALE, CAP = 0.7, 1.5


def arrays(length: int, groups: int):
    random = np.random.default_rng(length + groups)
    query = random.normal(size=(BATCH, HEADS, length, WIDTH)).astype(np.float32)
    layer = KeyValue(*random.normal(size=(2, BATCH, groups, WIDTH, length)).astype(np.float32))
    mask = np.arange(length) < np.array([[length], [length - 3]])
    return query, layer, mask


def written_out(query, layer, seen):
    """Head by head, in float64, with each group's keys and values for its heads."""
    out = np.zeros(query.shape)
    for row, head in np.ndindex(BATCH, HEADS):
        group = head // (HEADS // layer.key.shape[1])
        scores = query[row, head].astype(np.float64) @ layer.key[row, group] * SCALE
        weights = np.exp(CAP * np.tanh(scores / CAP)) * seen[row]
        out[row, head] = weights @ layer.value[row, group].T / weights.sum(-1, keepdims=True)
    return out


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_heads_of_a_group_share_keys_and_values(groups):
    query, layer, mask = arrays(11, groups)
    seen = np.broadcast_to(mask[:, None, :], (BATCH, 11, 11))
    halves = [
        Source(KeyValue(layer.key[..., part], layer.value[..., part]), seen[..., part])
        for part in (slice(0, 4), slice(4, None))
    ]
    attended = attend(*jax.device_put((query, halves)), scale=SCALE, soft_cap=CAP)
    np.testing.assert_allclose(attended, written_out(query, layer, seen), atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "reach", "block"),
    [(2, (2, 0), 8), (6, (0, 3), 8), (2, (5, 4), 64), (6, (40, 40), 8), (3, None, 8)],
)
@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_blocks_see_what_is_within_reach(groups, reach, block, platform, monkeypatch):
    """Blocks whose windows are cut off at either end, hold all, and fill no whole number."""
    monkeypatch.setattr(attention, "CPU_BLOCK", block)
    monkeypatch.setattr(attention, "BLOCK_SCORES", 1)  # elsewhere, blocks of the least size: 16
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *given, **branches: branches[platform](*given)
    )
    query, layer, mask = arrays(37, groups)
    distance = np.arange(37) - np.arange(37)[:, None]
    before, after = reach or (37, 37)
    window = (distance >= -before) & (distance <= after)
    seen = mask[:, None, :] & window
    given = jax.device_put((query, layer, mask))
    attended = attend_by_blocks(*given, scale=SCALE, soft_cap=CAP, reach=reach)
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
    run = jax.jit(lambda *given: attend_by_blocks(*given, reach=(16, 16)))
    text = run.lower(query, layer, mask).compile().as_text()
    assert "f32[1,512,544]" in text or "f32[512,544]" in text
    assert "512,4096]" not in text
