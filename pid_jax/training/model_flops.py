"""The floating-point operations of a training step that its model needs, for MFU.

MFU is the rate of these operations relative to the peak rate of the devices (Chowdhery et al.,
arXiv 2204.02311, appendix B). Operations that rematerialisation repeats do not count.
"""

import functools
import math
from collections.abc import Hashable

import jax
from jax.sharding import Mesh

from pid_jax import chips, flops, prompt_in_decoder
from pid_jax.backends.settings import compiling_for, placement_of
from pid_jax.data.batching import Batch
from pid_jax.data.packing import PackedBatch
from pid_jax.models.protocol import EncoderDecoder, Params

BACKWARD = 2
"""The backward pass has two products for each of the forward pass."""


class ModelFlops:
    """Counts the operations of steps from the shapes of their batches.

    Padding counts, as the devices compute it. The head counts for target tokens only.
    """

    def __init__(self, model: EncoderDecoder, params: Params) -> None:
        """params: arrays, or their shapes with shardings."""
        self._model = model
        self._params = params
        self._known: dict[Hashable, tuple[int, int]] = {}

    def of_step(self, batch: Batch | PackedBatch, target_tokens: float) -> float:
        """Forward and backward pass of a batch over all devices.

        batch: arrays, or their shapes, of the whole batch. target_tokens: those in the batch.
        """
        shape: Hashable = batch.shape
        if shape not in self._known:
            self._known[shape] = self._counted(self._params, batch)
        trunk, head_of_token = self._known[shape]
        return (1 + BACKWARD) * (trunk + head_of_token * target_tokens)

    def _counted(self, params: Params, batch: Batch | PackedBatch) -> tuple[int, int]:
        """Of the forward pass without the head, and of the head for one token."""
        forward = functools.partial(prompt_in_decoder.teacher_forced_logits, self._model)
        with compiling_for(*placement_of(params, batch)):
            program = jax.make_jaxpr(forward)(params, batch)
        [logits] = program.out_avals
        matrix = max(leaf.size for leaf in jax.tree.leaves(self._model.head_params(params)))
        head = 2 * matrix
        return flops.count(program) - head * math.prod(logits.shape[:-1]), head


def utilisation(model_flops: float, seconds: float, mesh: Mesh) -> float | None:
    """MFU: the share of the devices' peak rate, from 0 to 1. None if the peak rate is unknown.

    The peak is that of bfloat16 products, whatever the dtype of the model.
    """
    peak = chips.peak_flops_per_second(mesh.devices.flat[0].device_kind)
    return None if peak is None else model_flops / (seconds * mesh.size * peak)
