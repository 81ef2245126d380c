"""How arrays lie on devices: one mesh, one table from logical axes to its axes."""

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
"""Every axis that a parameter or a batch names, and the mesh axes that split it."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; a size of -1 takes the devices that the others leave.

    data: copies of the parameters, each with its share of the batch. fsdp: shares of the
    batch with the parameters split among them. tensor: parts of each matrix product. Raises
    `UserError` where the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    devices = jax.device_count()
    fixed = 1
    for size in sizes:
        if size != -1:
            fixed *= size
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh sizes must be at least 1, or -1 for one of them, not {sizes}")
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
        fixed = devices
    if fixed != devices:
        named = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(f"a mesh of {named} does not fit {devices} devices")
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def named_sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes, by `LOGICAL_AXIS_RULES`."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes(logical, LOGICAL_AXIS_RULES))


def param_shardings(mesh: Mesh, logical_axes: Any) -> Any:
    """A sharding for every parameter, in a tree like the one that `models.logical_axes` gives."""
    return nn.logical_to_mesh_sharding(logical_axes, mesh, LOGICAL_AXIS_RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: documents are split, all else is whole."""
    return named_sharding(mesh, "batch")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
