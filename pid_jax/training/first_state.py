"""The state of a run at its start: new, from a pretrained model, or from a checkpoint."""

import dataclasses
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array

from pid_jax import models
from pid_jax.checkpoints import frozen
from pid_jax.checkpoints.orbax import RunCheckpoints
from pid_jax.checkpoints.partial import initialised
from pid_jax.checkpoints.position import Positioned
from pid_jax.models.partition import Partition, joined
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.training import step


def trained_shapes(model: EncoderDecoder, partition: Partition) -> Any:
    """The shapes of the trained parameters, which the optimizer sees."""
    return partition.split(models.abstract_params(model))[0]


def new(
    seed: int,
    model: EncoderDecoder,
    params: Params | None,
    update: optax.GradientTransformation,
    shardings: step.TrainState,
    *,
    partition: Partition,
    averages: bool,
) -> step.TrainState:
    """The state before step 1, from pretrained parameters, or from new ones for None.

    params: float32. The state owns them. Adapters of the model are new. Frozen parameters in
    another dtype are converted one by one, and the originals deleted.
    """
    if params is None:
        key = jax.random.fold_in(jax.random.key(seed), 1)

        def make(key: Array) -> step.TrainState:
            params = models.init_params(model, key)
            return step.initial_state(params, update, seed, partition=partition, averages=averages)

        return jax.jit(make, out_shardings=shardings)(key)

    of_path = flatten_dict(joined(shardings.params, shardings.frozen))
    absent = sorted(of_path.keys() - flatten_dict(params).keys())
    adapters = unflatten_dict(initialised(model, seed, absent, of_path))
    trained, of_frozen = partition.split_params(joined(params, adapters), _converted)

    def others(trained: Params) -> step.TrainState:
        state = step.initial_state(trained, update, seed, averages=averages)
        return dataclasses.replace(state, params=None)

    # The program returns no parameters, because it would copy them.
    without = dataclasses.replace(shardings, params=None, frozen={})
    state = jax.jit(others, out_shardings=without)(trained)
    return dataclasses.replace(state, params=trained, frozen=of_frozen)


def _converted(leaf: Array, dtype: DTypeLike) -> Array:
    if leaf.dtype == dtype:
        return leaf
    converted = jax.block_until_ready(leaf.astype(dtype))
    leaf.delete()
    return converted


def restored(
    checkpoints: RunCheckpoints, number: int, abstract: step.TrainState, data: Positioned
) -> step.TrainState:
    """The state after a step that was saved. Restores the position of the data.

    abstract: the shapes and shardings of the state.
    """
    saved = checkpoints.restore(number, abstract.saved, data)
    ema = saved.pop(frozen.AVERAGED, None)
    of_frozen = frozen.restore(checkpoints.workdir, abstract.frozen)
    return step.TrainState(**saved, frozen=of_frozen, ema=ema)
