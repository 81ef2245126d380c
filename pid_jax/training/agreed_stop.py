"""Signals to one process as a request to all processes to stop at the same step.

A step is one program of all devices, so no process may run a step that another one omits. Before
each step, and before each batch of an evaluation, a program of its own computes the largest signal
number of all processes, on their devices. Its result is read one check later. By then it is there:
it precedes the last step on the devices. So a check waits for nothing, and processes agree without
messages between hosts. A stop comes one step later than in a single process.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pid_jax import sharding
from pid_jax.distributed import exchange
from pid_jax.training.stop_signals import StopSignals


class AgreedStopSignals(StopSignals):
    """`StopSignals` of all processes. All must read `requested` equally often."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._agreed: int | None = None
        self._checked: jax.Array | None = None
        self._devices = mesh.size
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

    @property
    def agreed(self) -> int | None:
        """The signal for which all processes stop."""
        return self._agreed

    @property
    def requested(self) -> bool:
        """Whether a process had a signal at the last check. Starts another check."""
        if self._agreed is None:
            before, self._checked = self._checked, self._largest(self._own())
            if before is not None:
                self._agreed = int(before) or None
        return self._agreed is not None

    def agree(self) -> None:
        """Waits for all processes, unlike `requested`."""
        received = exchange.gathered(self.received or 0)
        self._agreed = exchange.of_first(lambda: max(received or (0,))) or self._agreed

    def _own(self) -> jax.Array:
        number = np.full(1, self.received or 0, np.int32)
        return jax.make_array_from_callback((self._devices,), self._split, lambda _: number)


def stop_signals(mesh: Mesh) -> StopSignals:
    """The signals to this process, or to all processes of the mesh."""
    several = len({device.process_index for device in mesh.devices.flat}) > 1
    return AgreedStopSignals(mesh) if several else StopSignals()
