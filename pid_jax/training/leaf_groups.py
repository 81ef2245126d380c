"""Optimizer computations with few kernels: small parameters of one shape are stacked.

T5-base has 62 norm scales of 768 numbers. An optimizer that treats each by itself runs several
kernels of some microseconds for each of them. Large parameters are not stacked, because copies of
them would cost more than the kernels.
"""

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pid_jax.sharding import current_mesh

SMALL = 1 << 16
"""The largest number of entries of a parameter that is stacked."""


def in_groups(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation, with one computation for small parameters of one shape.

    The state is unchanged. The transformation must treat every parameter by itself. Trees of its
    state that have the structure of the parameters belong to the parameters, all others are shared.
    """

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        gradients: list[Array] = jax.tree.leaves(updates)
        structure: Any = jax.tree.structure(updates)
        leaves = jax.tree.leaves(params)

        def of_parameters(part: Any) -> bool:
            return bool(jax.tree.structure(part) == structure)

        parts, state_structure = jax.tree.flatten(state, is_leaf=of_parameters)
        own = {k: jax.tree.leaves(part) for k, part in enumerate(parts) if of_parameters(part)}

        def update_one(gradient: Array, of_leaf: dict[int, Array], leaf: Array) -> Any:
            whole = [of_leaf.get(k, part) for k, part in enumerate(parts)]
            state = jax.tree.unflatten(state_structure, whole)
            changed, state = transformation.update(gradient, state, leaf)
            return changed, dict(enumerate(jax.tree.leaves(state)))

        axes = {k: 0 if k in own else None for k in range(len(parts))}
        update_all = jax.vmap(update_one, out_axes=(0, axes))
        results: list[Any] = [None] * len(leaves)
        after: list[Any] = [list(own[k]) if k in own else part for k, part in enumerate(parts)]
        for group in _groups(leaves):
            inputs = [(gradients[i], {k: own[k][i] for k in own}, leaves[i]) for i in group]
            if len(group) == 1:
                outputs = [update_one(*inputs[0])]
            else:
                changes, states = update_all(*jax.tree.map(lambda *x: jnp.stack(x), *inputs))
                outputs = [
                    (change, {k: x[n] if k in own else x for k, x in states.items()})
                    for n, change in enumerate(changes)
                ]
            for i, (change, new) in zip(group, outputs, strict=True):
                results[i] = change
                for k, part in new.items():
                    if k in own:
                        after[k][i] = part
                    else:
                        after[k] = part
        after = [jax.tree.unflatten(structure, x) if k in own else x for k, x in enumerate(after)]
        return jax.tree.unflatten(structure, results), jax.tree.unflatten(state_structure, after)

    return optax.GradientTransformation(transformation.init, update)


def _groups(leaves: list[Any]) -> list[list[int]]:
    """Indices of leaves to compute as one: the small ones of each shape and dtype."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, leaf in enumerate(leaves):
        small = leaf.size <= SMALL
        groups[(leaf.shape, str(leaf.dtype)) if small else index].append(index)
    return list(groups.values())


def global_norm(tree: Any) -> Float[Array, ""]:
    """The square root of the sum of all squares, as `optax.tree.norm`.

    Small leaves are concatenated for one sum. XLA computes those of large ones in the kernels that
    make them. On a mesh only vectors are concatenated: all devices would gather a matrix.
    """
    leaves = jax.tree.leaves(tree)
    split = current_mesh() is not None
    small = [leaf.size <= SMALL and (leaf.ndim < 2 or not split) for leaf in leaves]
    sums = [jnp.sum(jnp.square(leaf)) for leaf, one in zip(leaves, small, strict=True) if not one]
    if any(small):
        joined = [leaf.reshape(-1) for leaf, one in zip(leaves, small, strict=True) if one]
        sums.append(jnp.sum(jnp.square(jnp.concatenate(joined))))
    return jnp.sqrt(sum(sums, jnp.zeros(())))


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, with `global_norm`. A program computes equal norms once."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = global_norm(updates)
        clipped = jax.tree.map(lambda x: jnp.where(norm < most, x, x / norm * most), updates)
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_param_block_rms(least: float = 1e-3) -> optax.GradientTransformation:
    """As `optax.scale_by_param_block_rms`, which reads every parameter twice."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def scaled(update: Array, param: Array) -> Array:
            return update * jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(param))), least)

        return jax.tree.map(scaled, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
