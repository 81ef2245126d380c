"""The write of a decode step's keys and values into the caches of all layers.

The plain version is two kernels for each layer. On a GPU one kernel writes all of them.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pid_jax.backends.decode_attention import fits
from pid_jax.backends.layouts import KeyValue
from pid_jax.backends.settings import current_platform


def write_step_reference(
    caches: Sequence[KeyValue], new: Sequence[KeyValue], slot: Int[Array, ""]
) -> tuple[KeyValue, ...]:
    """The caches of all layers with new tokens, the first at `slot`, in every row."""
    return tuple(cache.write(one, slot) for cache, one in zip(caches, new, strict=True))


def write_step(
    caches: Sequence[KeyValue], new: Sequence[KeyValue], slot: Int[Array, ""]
) -> tuple[KeyValue, ...]:
    """`write_step_reference`, in one kernel if the backend's settings name it.

    Batch axes are `[B, P]`.
    """
    shapes = {(cache.key.shape, cache.key.dtype) for cache in caches}
    if len(shapes) != 1 or not all(map(fits, caches)) or any(one.length() != 1 for one in new):
        return write_step_reference(caches, new, slot)
    # `jax.vmap` computes new tokens in the order [P, B].
    tokens = [x[:, :, :, 0].swapaxes(0, 1) for x in jax.tree.leaves(tuple(new))]
    arrays, tree = jax.tree.flatten(tuple(caches))
    return jax.tree.unflatten(tree, _write(arrays, tokens, slot))


def _write(
    arrays: Sequence[Array], tokens: Sequence[Array], slot: Int[Array, ""]
) -> Sequence[Array]:
    """Writes `[P, B, G, K]` into arrays of `[B, P, G, M, K]`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    documents, prompts = arrays[0].shape[:2]
    written: Sequence[Array] = pl.pallas_call(
        functools.partial(_kernel, count=len(arrays)),
        grid=(prompts, documents),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays],
        input_output_aliases={1 + len(tokens) + i: i for i in range(len(arrays))},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=current_platform() != "gpu",
        name="cache_update",
    )(slot[None], *tokens, *arrays)
    return written


def _kernel(slot_ref: Any, *refs: Any, count: int) -> None:
    """The program of one row."""
    from jax.experimental import pallas as pl

    prompt, document = pl.program_id(0), pl.program_id(1)
    groups = refs[0].shape[2]
    # Heads that are repeated write the same values again.
    head = jnp.minimum(jnp.arange(pl.next_power_of_2(groups)), groups - 1)
    slot = slot_ref[0]
    for new, cache in zip(refs[:count], refs[-count:], strict=True):
        cache[document, prompt, head, slot, :] = new[prompt, document, head, :]
