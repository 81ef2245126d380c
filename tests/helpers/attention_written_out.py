"""Attention written out head by head, in float64."""

import jax.numpy as jnp
import numpy as np

from pid_jax.backends.layouts import ATTENDED_LAST, KeyValue, Layout

BATCH, HEADS, WIDTH = 2, 6, 4
SCALE, CAP = 0.7, 1.5


def arrays(length: int, groups: int, layout: Layout = ATTENDED_LAST):
    """Queries, keys and values, and a mask in which the second document is shorter."""
    random = np.random.default_rng(length + groups)
    query = random.normal(size=(BATCH, HEADS, length, WIDTH)).astype(np.float32)
    pair = random.normal(size=(2, BATCH, groups, length, WIDTH)).astype(np.float32)
    layer = KeyValue(*(layout.from_heads(jnp.asarray(x)) for x in pair), layout)
    mask = np.arange(length) < np.array([[length], [max(length - 3, 1)]])
    return query, layer, mask


def by_head(layer: KeyValue) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values `[B, G, S, K]`."""
    key, value = np.asarray(layer.key), np.asarray(layer.value)
    if layer.layout == ATTENDED_LAST:
        key, value = key.swapaxes(-2, -1), value.swapaxes(-2, -1)
    return key, value


def written_out(query, layer, seen):
    """Each group's keys and values for its heads. seen: `[B, L, S]`."""
    out = np.zeros(query.shape)
    keys, values = by_head(layer)
    for row, head in np.ndindex(BATCH, HEADS):
        group = head // (HEADS // keys.shape[1])
        scores = query[row, head].astype(np.float64) @ keys[row, group].T * SCALE
        weights = np.exp(CAP * np.tanh(scores / CAP)) * seen[row]
        out[row, head] = weights @ values[row, group] / weights.sum(-1, keepdims=True)
    return out
