"""Checkpoints of training runs, without the training."""

import json

import grain
import jax
import jax.numpy as jnp

from pid_jax.checkpoints.orbax import CONFIG, RunCheckpoints, saved_steps


def numbers():
    """A shuffled data set, as a Grain iterator."""
    return iter(grain.MapDataset.range(100).seed(3).shuffle().to_iter_dataset())


def state_of(step):
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": {"kernel": jnp.full((200, 100), float(step))},
        "opt_state": ({"kernel": jnp.full((200, 100), 2.0 * step)}, ()),
        "key": jax.random.key_data(jax.random.key(step)),
    }


def abstract():
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state_of(0)
    )


def write_run(workdir, metrics, *, best_metric="loss", recent=2):
    """A checkpoint for each of `metrics`, at steps 1, 2, ..."""
    workdir.mkdir(exist_ok=True)
    (workdir / CONFIG).write_text(json.dumps({"checkpoint": {"best_metric": best_metric}}))
    with RunCheckpoints(workdir, recent=recent, best_metric=best_metric) as checkpoints:
        data = numbers()
        for step, figures in enumerate(metrics, start=1):
            checkpoints.save(step, state_of(step), data, figures)
            checkpoints.wait()
        return saved_steps(workdir), checkpoints.best_step
