"""Parameters that GPUs and TPUs decode with: fewer products, no casts, norms without a scale.

A decode step has few rows, so that its time grows with the number of products. So the
self-attention of a decoder of T5 or LongT5 has one kernel for the projections of queries, keys and
values, and the scale of an RMSNorm before bias-free projections is a factor of their kernels.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

JOINED = "query_key_value"
"""The name of the module with the joined kernel in an attention module."""


def with_dtype(params: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Parameters with the kernels and biases of products in the dtype that products have."""
    changed: dict[str, Any] = {}
    for name, child in params.items():
        if isinstance(child, Mapping):
            changed[name] = with_dtype(child, dtype)
        elif "kernel" in params and name in ("kernel", "bias"):
            changed[name] = jnp.asarray(child).astype(dtype)
        else:
            changed[name] = child
    return changed


def with_joined_projections(decoder: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """A decoder's parameters with joined kernels, and without the scales of norms before them.

    Changes the modules `layers_0`, `layers_1`, ...: `self_attention` has the module `JOINED`
    instead of three, and the scales of `self_attention_norm` and `cross_attention_norm` are
    factors of the kernels that read them. The norms are RMSNorms, the projections have no biases.
    Arrays of NumPy stay on the host.
    """
    changed = dict(decoder)
    for name, layer in decoder.items():
        if name.startswith("layers_"):
            layer = dict(layer)
            own, cross = dict(layer["self_attention"]), dict(layer["cross_attention"])
            kernels = [own.pop(part)["kernel"] for part in ("query", "key", "value")]
            joined = array_module(kernels[0]).concatenate(kernels, axis=1)
            own[JOINED] = {"kernel": _scaled(joined, layer.pop("self_attention_norm"), dtype)}
            scaled = _scaled(cross["query"]["kernel"], layer.pop("cross_attention_norm"), dtype)
            cross["query"] = {"kernel": scaled}
            changed[name] = {**layer, "self_attention": own, "cross_attention": cross}
    return changed


def array_module(array: Array | np.ndarray) -> Any:
    """NumPy for an array of NumPy, else `jax.numpy`, which would copy it to a device."""
    return np if isinstance(array, np.ndarray) else jnp


def _scaled(
    kernel: Float[Array | np.ndarray, "I O"], norm: Mapping[str, Any], dtype: DTypeLike
) -> Float[Array | np.ndarray, "I O"]:
    """The kernel after a norm without a scale."""
    scale = norm["scale"].astype(jnp.float32)
    return (kernel.astype(jnp.float32) * scale[:, None]).astype(jnp.dtype(dtype))
