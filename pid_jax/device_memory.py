"""The memory of devices: what a compiled program needs, and what a device has."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Memory:
    """Bytes on each device while the program runs."""

    arguments: int
    outputs: int
    aliased: int
    """Of the outputs, those in the memory of donated arguments."""
    temporaries: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries


def of_program(compiled: jax.stages.Compiled) -> Memory:
    """What the compiler says of a program."""
    analysis: Any = compiled.memory_analysis()
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes of arrays, or of `jax.ShapeDtypeStruct`s with shardings, on each of their devices."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape, dtype=np.int64)) * jnp.dtype(leaf.dtype).itemsize
    return total


def of_device(device: jax.Device) -> int | None:
    """Bytes that programs can use on a device. None where JAX does not know.

    On a CPU, the share of each of the process's devices in the memory of the machine, or in that
    of the control group (Linux, version 2).
    """
    if device.platform == "cpu":
        whole = _of_machine()
        return None if whole is None else whole // len(jax.local_devices(backend="cpu"))
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit")


def peak_in_use(devices: Iterable[jax.Device]) -> int | None:
    """The most bytes in use so far on any of the devices. None where they do not say, as CPUs."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return max((peak for peak in peaks if peak is not None), default=None)


_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")


def _of_machine() -> int | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = _CONTROL_GROUP.read_text(encoding="utf-8").strip()
    except OSError:
        return size
    return min(size, int(limit)) if limit.isdecimal() else size


_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_OUT_OF_MEMORY_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", re.IGNORECASE)


def out_of_memory(message: str) -> tuple[int, int] | None:
    """Bytes that a program needs, and those that the chip has, from a compiler's refusal.

    Zeros if the message does not say. None for another error.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    match = _OUT_OF_MEMORY_USED.search(message) or _OUT_OF_MEMORY.search(message)
    if match is None:
        return 0, 0
    return _bytes(match[1], match[2]), _bytes(match[3], match[4])


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def size_text(count: float) -> str:
    """A number of bytes with its unit, such as "1.50 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
