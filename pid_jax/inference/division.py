"""How the processes of a run divide the batches of a call.

Every process plans the same batches, those of a single process with as many devices, and decodes
every n-th of them. So the results do not depend on the number of processes.
"""

from collections.abc import Hashable, Sequence

from pid_jax.data.batching import BatchShape
from pid_jax.distributed import service
from pid_jax.inference.batch_planning import PlannedBatch


class Division:
    """The batches of this process, and the shapes that all processes have compiled."""

    def __init__(self) -> None:
        self._planned: dict[Hashable, dict[BatchShape, None]] = {}

    def compiled(self, signature: Hashable) -> list[BatchShape]:
        """The shapes that a single process would have compiled by now for such options."""
        return list(self._planned.get(signature, {}))

    def own(self, signature: Hashable, batches: Sequence[PlannedBatch]) -> list[PlannedBatch]:
        """The batches of this process, in their order. The largest come first."""
        planned = self._planned.setdefault(signature, {})
        planned.update(dict.fromkeys(batch.shape for batch in batches))
        return list(batches[service.index() :: service.count()])
