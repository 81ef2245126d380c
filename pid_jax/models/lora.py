"""LoRA: a trained product of two small matrices beside each kernel of chosen `Dense` modules.

Hu et al., arXiv 2106.09685. With rank r, a kernel W of shape `[I, O]` has A of shape `[I, r]` and B
of shape `[r, O]` beside it, and the module computes

    x W + (alpha / r) (x A) B

A is random and B is zero at first, so that training starts from the model without an adapter. A
model that `models.build` has made with a `Lora` has these parameters in its tree, with logical
axes. `merged` adds the products to the kernels.

The names, the shapes and the product are those of `LoraProvider` of qwix 0.1.8. A is initialised as
in PEFT.

Letters beside those of `pid_jax.models.protocol`: I input features, O output features.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pid_jax.backends.matmul import precision_of
from pid_jax.models.layers import Dense
from pid_jax.sharding import constrain_features, gathered

KERNEL = "kernel"
A, B = f"{KERNEL}_lora_a", f"{KERNEL}_lora_b"
"""The names of the two matrices beside `KERNEL`."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """What is adapted, and how."""

    rank: int
    alpha: float
    targets: str
    """A regular expression. It is searched for in the paths of kernels, such as
    `decoder/layers_0/cross_attention/query/kernel`."""
    dropout: float = 0.0
    """The rate at which training drops features of the input of A."""

    @property
    def scale(self) -> float:
        """The factor of the product of the two matrices."""
        return self.alpha / self.rank

    def adapts(self, path: tuple[str, ...]) -> bool:
        """Whether the kernel of this path has an adapter."""
        return path[-1] == KERNEL and re.search(self.targets, "/".join(path)) is not None


@contextmanager
def _intercepting(lora: Lora) -> Iterator[None]:
    with nn.intercept_methods(functools.partial(_adapted, lora)):
        yield


def adapting(lora: Lora | None) -> Any:
    """A context in which `Dense` modules with an adapter compute its product, too."""
    return nullcontext() if lora is None else _intercepting(lora)


def _adapted(
    lora: Lora,
    compute: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: Any,
) -> Any:
    """What a method returns, with the product of its adapter if the module is a `Dense`.

    The arguments are those of an interceptor of `nn.intercept_methods`.
    """
    product = compute(*args, **kwargs)
    module = context.module
    if type(module) is not Dense or context.method_name != "__call__":
        return product
    wanted = module.is_initializing() and lora.adapts((*module.path, KERNEL))
    if not wanted and not module.has_variable("params", A):
        return product
    x: Array = args[0]
    if kwargs.get("by_head"):
        x = x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
    return product + _low_rank_product(module, lora, x).astype(product.dtype)


def _low_rank_product(
    module: Dense, lora: Lora, x: Float[Array, "*batch I"]
) -> Float[Array, "*batch O"]:
    into, out = module.axes
    of_a, of_b = (into, "rank"), ("rank", out)
    # As in PEFT: uniform within one over the square root of I.
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    a = module.param(
        A, nn.with_logical_partitioning(uniform, of_a), (x.shape[-1], lora.rank), jnp.float32
    )
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, of_b)
    b = module.param(B, zeros, (lora.rank, module.features), jnp.float32)
    if lora.dropout and module.has_rng("dropout"):
        kept = 1 - lora.dropout
        mask = jax.random.bernoulli(module.make_rng("dropout"), kept, x.shape)
        x = jnp.where(mask, x / kept, 0).astype(x.dtype)
    dtype = module.dtype
    dot = functools.partial(jnp.dot, precision=precision_of(dtype))
    low = dot(x.astype(dtype), gathered(a.astype(dtype), *of_a))
    product = dot(low, gathered(b.astype(dtype), *of_b)) * lora.scale
    return constrain_features(product, out if out != "embed" else None)


def is_adapter(path: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to an adapter."""
    return path[-1] in (A, B)


def merged(
    params: Mapping[str, Any], scale: float, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """Parameters without adapters, whose kernels have the products of the adapters.

    dtype: of these kernels, None for the dtype that they have. The sum is computed in float32.
    Kernels stay on their devices, in their sharding, and arrays of NumPy on the host.
    """
    flat = flatten_dict(params)
    base = {path: leaf for path, leaf in flat.items() if not is_adapter(path)}
    for path in flat:
        if path[-1] == A:
            kernel = (*path[:-1], KERNEL)
            matrices = flat[path], flat[(*path[:-1], B)]
            base[kernel] = merged_kernel(base[kernel], *matrices, scale, dtype)
    return unflatten_dict(base)


def merged_kernel(
    kernel: Float[Array | np.ndarray, "I O"],
    a: Float[Array | np.ndarray, "I rank"],
    b: Float[Array | np.ndarray, "rank O"],
    scale: float,
    dtype: DTypeLike | None = None,
) -> Float[Array | np.ndarray, "I O"]:
    """The kernel with `scale` times the product of `a` and `b`. dtype: as in `merged`."""
    dtype = kernel.dtype if dtype is None else jnp.dtype(dtype)
    if isinstance(kernel, np.ndarray):
        low_rank = np.asarray(a, np.float32) @ np.asarray(b, np.float32)
        return (kernel.astype(np.float32) + np.float32(scale) * low_rank).astype(dtype)
    add = jax.jit(_sum, static_argnames="dtype", out_shardings=kernel.sharding)
    return add(kernel, a, b, scale, dtype=dtype)


def _sum(kernel: Array, a: Array, b: Array, scale: Float[Array, ""], dtype: DTypeLike) -> Array:
    product = jnp.dot(
        a.astype(jnp.float32), b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return (kernel.astype(jnp.float32) + scale * product).astype(dtype)
