"""Sharding: one device mesh, and one table from logical axes to mesh axes.

Parameters have their sharding from `param_shardings`, batches from `batch_sharding`. Within a
program, `constrain` gives activations theirs. The partitioner otherwise decides by itself, and may
split activations like the parameters they meet: under fsdp every device then computes whole
batches.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from pid_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

LOGICAL_AXIS_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("prompts", None),
    ("length", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("buckets", None),
    ("positions", None),
    ("norm", None),
    ("rank", None),
)
"""Every logical axis of parameters, batches and activations, and the mesh axes that split it.

The features of activations have the axis None, not "embed": no mesh axis splits them."""


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over all devices. A size of -1 uses all remaining devices.

    data: number of parameter copies, each with a share of the batch. fsdp: number of shares of
    the batch that also split the parameters. tensor: number of parts of each matrix product.
    devices: None for those of this machine. `pid_jax.compile_ahead` passes devices that are absent.
    Raises `UserError` if the product of the sizes is not the number of devices.
    """
    sizes = [data, fsdp, tensor]
    count = jax.device_count() if devices is None else len(devices)
    fixed = 1
    for size in sizes:
        if size != -1:
            fixed *= size
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh sizes must be at least 1, or -1 for one of them, not {sizes}")
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
        fixed = count
    if fixed != count:
        named = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(f"a mesh of {named} does not fit {count} devices")
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=types, devices=devices)


def named_sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes, by `LOGICAL_AXIS_RULES`."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes(logical, LOGICAL_AXIS_RULES))


def param_shardings(mesh: "AnyMesh", logical_axes: Any) -> Any:
    """A tree of shardings for the tree of logical axes of `models.logical_axes`."""
    return nn.logical_to_mesh_sharding(logical_axes, mesh, LOGICAL_AXIS_RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: split by documents only."""
    return named_sharding(mesh, "batch")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has completely."""
    return NamedSharding(mesh, PartitionSpec())


AnyMesh = Mesh | AbstractMesh
"""Tracing needs the sizes of a mesh, not its devices."""

_MESH: contextvars.ContextVar[AnyMesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def tracing_for(mesh: AnyMesh | None) -> Iterator[None]:
    """What is traced in this context is for the devices of a mesh. None for a single device."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def current_mesh() -> AnyMesh | None:
    """The mesh of `tracing_for`."""
    return _MESH.get()


def shares(logical: str) -> int:
    """The number of parts that the current mesh splits a logical axis into."""
    mesh = current_mesh()
    return 1 if mesh is None else _parts(mesh, mesh_axes(logical))


def constrain(x: Shaped[Array, "*axes"], *logical: str | None) -> Shaped[Array, "*axes"]:
    """x with the sharding of these logical axes on the current mesh. x itself without a mesh.

    logical: one name for each axis of x, as the function sees it: under `jax.vmap` without the
    mapped axis, whose sharding remains open. An axis whose size the mesh does not divide is whole
    on every device. If that is the batch, x has no constraint.
    """
    mesh = current_mesh()
    if mesh is None:
        return x
    spec = [_if_divided(mesh, name, size) for name, size in zip(logical, x.shape, strict=True)]
    if "batch" in logical and spec[logical.index("batch")] is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def constrain_params(tree: Any, logical_axes: Any) -> Any:
    """`constrain` of each parameter, or of its gradient. logical_axes: of `models.logical_axes`."""
    axes = jax.tree.leaves(logical_axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    leaves, structure = jax.tree.flatten(tree)
    constrained = [
        constrain(leaf, *of_leaf, *[None] * (leaf.ndim - len(of_leaf)))
        for leaf, of_leaf in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(structure, constrained)


def constrain_features(
    x: Float[Array, "*batch features"], features: str | None
) -> Float[Array, "*batch features"]:
    """`constrain` of activations: the first axis is that of documents, the last has this name."""
    if x.ndim < 2:
        return x
    return constrain(x, "batch", *[None] * (x.ndim - 2), features)


def gathered(x: Float[Array, "*axes"], *logical: str | None) -> Float[Array, "*axes"]:
    """A parameter as products read it: whole along the axes that fsdp splits.

    logical: the axes of the parameter. Its gradient has the parameter's own sharding, so that the
    sum over devices also splits it.
    """
    if current_mesh() is None:
        return x
    return _gathered(x, logical)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: Array, logical: tuple[str | None, ...]) -> Array:
    return constrain(x, *(None if name == "embed" else name for name in logical))


def _gathered_forward(x: Array, logical: tuple[str | None, ...]) -> tuple[Array, None]:
    return _gathered(x, logical), None


def _gathered_backward(logical: tuple[str | None, ...], _: None, gradient: Array) -> tuple[Array]:
    return (constrain(gradient, *logical),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def mesh_axes(logical: str | None) -> tuple[str, ...]:
    """The mesh axes that split a logical axis, by `LOGICAL_AXIS_RULES`."""
    (axes,) = nn.logical_to_mesh_axes((logical,), LOGICAL_AXIS_RULES)
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _parts(mesh: AnyMesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _if_divided(mesh: AnyMesh, logical: str | None, size: int) -> tuple[str, ...] | None:
    """The mesh axes that split an axis of this size. None if they do not divide it."""
    axes = mesh_axes(logical)
    return axes if axes and size % _parts(mesh, axes) == 0 else None
