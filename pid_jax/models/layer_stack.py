"""The layers of an encoder or a decoder, one after another: unrolled, or as one `jax.lax.scan`.

An unrolled program contains every layer. A scanned one contains each kind of layer once, so that
the time to compile does not grow with depth. Parameters, and therefore checkpoints, have the same
layout in both. A scanned program stacks the parameters of equal layers in the dtype of activations.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from pid_jax.sharding import constrain_features


def apply_layers(
    stack: nn.Module,
    x: Float[Array, "*batch D"],
    arguments: Sequence[tuple[Any, ...]],
    deterministic: bool,
    *,
    scan: bool,
) -> tuple[Float[Array, "*batch D"], tuple[Any, ...]]:
    """The output of the last layer, and what each layer returns beside its output.

    stack: a module with `layers`. arguments: those of each layer after `x` and before
    `deterministic`. scan: whether the program scans over layers. Layers whose kinds do not repeat
    are unrolled, and so are the last ones if the number of layers is not a multiple of the period.
    Scanned layers draw other numbers for dropout than unrolled ones, from the same distribution.
    """
    layers: Sequence[nn.Module] = stack.layers
    scanned = 0
    others: list[Any] = []
    if scan and layers and not stack.is_initializing():
        period = _period(layers)
        if len(layers) >= 2 * period:
            scanned = len(layers) - len(layers) % period
            key = None
            if not deterministic and stack.has_rng("dropout"):
                key = stack.make_rng("dropout")
            x, others = _scan(layers[:scanned], period, x, arguments[:scanned], deterministic, key)
    for layer, inputs in zip(layers[scanned:], arguments[scanned:], strict=True):
        x, other = _split(layer(constrain_features(x, None), *inputs, deterministic))
        others.append(other)
    return constrain_features(x, None), tuple(others)


def _split(result: Any) -> tuple[Array, Any]:
    """A layer's output, and what it returns beside it: a decoder's keys and values, or None."""
    return result if isinstance(result, tuple) else (result, None)


def _period(layers: Sequence[nn.Module]) -> int:
    """The smallest number of layers after which their kinds repeat. Gemma alternates two kinds."""
    kinds = [_kind(layer) for layer in layers]
    return next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[:-n])


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """The type and the fields of a layer, but for where it is in the model, and its parameters.

    Layers of one type have other parameters if only some have an adapter.
    """
    fields = [field.name for field in dataclasses.fields(layer)]
    own = [getattr(layer, name) for name in fields if name not in ("parent", "name")]
    return type(layer), *own, jax.tree.structure(layer.variables.get("params", {}))


def _scan(
    layers: Sequence[nn.Module],
    period: int,
    x: Array,
    arguments: Sequence[tuple[Any, ...]],
    deterministic: bool,
    key: Key[Array, ""] | None,
) -> tuple[Array, list[Any]]:
    """`apply_layers` with `period` layers in each step of a scan."""
    kinds = [layer.clone(parent=None, name=None) for layer in layers[:period]]
    params = [_stack([_cast(layer) for layer in layers[n::period]]) for n in range(period)]
    inputs = [_Inputs.of(arguments[n::period]) for n in range(period)]
    keys = None
    if key is not None:
        keys = jax.random.split(key, (len(layers) // period, period))

    def step(x: Array, of_step: Any) -> tuple[Array, list[Any]]:
        params, varying, keys = of_step
        others = []
        for n, kind in enumerate(kinds):
            rngs = {} if keys is None else {"dropout": keys[n]}
            result = kind.apply(
                {"params": params[n]},
                constrain_features(x, None),
                *inputs[n].joined(varying[n]),
                deterministic,
                rngs=rngs,
            )
            x, other = _split(result)
            others.append(other)
        return x, others

    x, stacked = jax.lax.scan(step, x, (params, [group.varying for group in inputs], keys))
    others = [
        jax.tree.map(lambda leaf, i=i: leaf[i // period], stacked[i % period])
        for i in range(len(layers))
    ]
    return x, others


def _cast(layer: nn.Module) -> Any:
    """The parameters of a layer, with kernels in the dtype that products read them in."""

    def cast(path: Any, leaf: Array) -> Array:
        return leaf.astype(layer.dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(cast, layer.variables.get("params", {}))


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The arguments of the layers at one position of the period."""

    shared: list[Any]
    """The arrays that all these layers read. None for one that differs between them."""
    varying: list[Any]
    """The other arrays, stacked over layers."""
    structure: Any

    @classmethod
    def of(cls, arguments: Sequence[tuple[Any, ...]]) -> "_Inputs":
        structure = jax.tree.structure(arguments[0])
        leaves = zip(*map(jax.tree.leaves, arguments), strict=True)
        shared, varying = [], []
        for of_layers in leaves:
            if all(leaf is of_layers[0] for leaf in of_layers):
                shared.append(of_layers[0])
            else:
                shared.append(None)
                varying.append(jnp.stack(of_layers))
        return cls(shared, varying, structure)

    def joined(self, varying: Sequence[Array]) -> tuple[Any, ...]:
        """The arguments of one layer, from its own arrays."""
        own = iter(varying)
        leaves = [next(own) if leaf is None else leaf for leaf in self.shared]
        arguments: tuple[Any, ...] = jax.tree.unflatten(self.structure, leaves)
        return arguments
