"""Attention with groups of heads and soft-capping, against the same written out."""

import jax
import numpy as np
import pytest

from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST
from pid_jax.models.attention import Source, attend
from tests.helpers.attention_written_out import BATCH, CAP, SCALE, arrays, written_out


@pytest.mark.parametrize("layout", [ATTENDED_FIRST, ATTENDED_LAST])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_heads_of_a_group_share_keys_and_values(groups, layout):
    """Sources may have different layouts."""
    query, layer, mask = arrays(11, groups, layout)
    _, other, _ = arrays(11, groups, ATTENDED_FIRST)
    seen = np.broadcast_to(mask[:, None, :], (BATCH, 11, 11))
    halves = [
        Source(layer.window(0, 4), seen[..., :4]),
        Source(other.window(4, 7), seen[..., 4:]),
    ]
    attended = attend(*jax.device_put((query, halves)), scale=SCALE, soft_cap=CAP)
    np.testing.assert_allclose(attended, written_out(query, layer, seen), atol=1e-5)
