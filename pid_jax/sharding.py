"""Sharding: one device mesh, and one table from logical axes to mesh axes."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
)
"""Every logical axis of parameters and batches, and the mesh axes that split it."""


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


def param_shardings(mesh: Mesh, logical_axes: Any) -> Any:
    """A tree of shardings for the tree of logical axes of `models.logical_axes`."""
    return nn.logical_to_mesh_sharding(logical_axes, mesh, LOGICAL_AXIS_RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: split by documents only."""
    return named_sharding(mesh, "batch")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has completely."""
    return NamedSharding(mesh, PartitionSpec())
