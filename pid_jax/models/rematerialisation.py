"""Rematerialisation: the backward pass computes values of a layer again instead of storing them.

Chen et al., arXiv 1604.06174. A policy names the values of a layer that are stored.
"""

import functools
import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
from flax import linen as nn

from pid_jax.backends.settings import backend_settings

NONE = "none"
"""The name for training without rematerialisation: every value is stored."""

POLICIES: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_saveable,
        "dots_with_no_batch_dims": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        **{
            name: getattr(jax.checkpoint_policies, name)
            for name in (
                "nothing_saveable",
                "everything_saveable",
                "dots_saveable",
                "dots_with_no_batch_dims_saveable",
            )
        },
    }
)
"""By name: three short names, and those of `jax.checkpoint_policies`.

"full" stores only the input of each layer. "dots_with_no_batch_dims" also stores products with
parameters. "dots" also stores products of queries with keys and of attention with values.
"""

NAMES = (NONE, *POLICIES)


def rematerialised(layer_type: type[nn.Module], policy: str) -> type[nn.Module]:
    """A type of layers, with the same parameters, that stores what the policy names.

    The argument `deterministic` of its `__call__` is static.
    """
    if policy == NONE:
        return layer_type
    arguments = list(inspect.signature(layer_type.__call__).parameters)
    transformed: type[nn.Module] = nn.remat(
        layer_type,
        policy=POLICIES[policy],
        static_argnums=(arguments.index("deterministic"),),
    )
    return transformed


def products_stored(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method or a function of a module that stores only its products for the backward pass.

    It takes the module, x and `deterministic`. Norms, activations and dropout between the products
    are computed again, no product is. Only in training, where the backend's settings name it.
    """
    transformed = nn.remat(
        method,
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        static_argnums=(2,),
    )

    @functools.wraps(method)
    def selected(self: nn.Module, x: Any, deterministic: bool) -> Any:
        recomputes = backend_settings().recomputes_elementwise and not deterministic
        return (transformed if recomputes else method)(self, x, deterministic)

    return selected
