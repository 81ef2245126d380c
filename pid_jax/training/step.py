"""The training step and the evaluation step, as pure functions of the state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from pid_jax import models, prompt_in_decoder, sharding
from pid_jax.checkpoints.frozen import AVERAGED
from pid_jax.data.batching import Batch
from pid_jax.data.packing import PackedBatch
from pid_jax.models.partition import Partition, joined, of_paths_in
from pid_jax.models.protocol import EncoderDecoder
from pid_jax.training.leaf_groups import global_norm
from pid_jax.training.optimizer import Schedule


@flax.struct.dataclass
class TrainState:
    """The state of training.

    The fields are arrays, or shapes or shardings in a description of the state.
    """

    step: Any
    """Number of completed updates, an int32 scalar."""
    params: Any
    """The parameters that training changes."""
    opt_state: Any
    key: Any
    """Raw key data, uint32, constant. The dropout of a step uses `fold_in(key, step)`."""
    frozen: Any = flax.struct.field(default_factory=dict)
    """The other parameters. Empty if training changes all of them."""
    ema: Any = None
    """The exponential moving average of `params`. None without one."""

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint has beside the position of the data. Frozen parameters are elsewhere.

        `pid_jax.checkpoints.frozen` says where.
        """
        fields = {"step": self.step, "params": self.params, "opt_state": self.opt_state}
        averaged = {} if self.ema is None else {AVERAGED: self.ema}
        return {**fields, "key": self.key, **averaged}

    @property
    def evaluated(self) -> Any:
        """The parameters of validation and of the trained model: the average, if there is one."""
        return joined(self.params if self.ema is None else self.ema, self.frozen)


class BatchEvaluation(NamedTuple):
    """Sums over one batch, and the targets that greedy decoding yields."""

    loss: Float[Array, ""]
    """Summed over target tokens, in nats."""
    correct_tokens: Float[Array, ""]
    target_tokens: Float[Array, ""]
    correct: Bool[Array, "B subtasks"]
    """True if every target token has the highest logit, so that greedy decoding yields it."""
    present: Bool[Array, "B subtasks"]
    """False for entries that are no subtask with a target, see `correct_subtasks`."""


def initial_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    partition: Partition | None = None,
    averages: bool = False,
) -> TrainState:
    """The state before the first step.

    params: those of the whole model. partition: which of them are frozen. averages: whether the
    state has an average of the trained ones.
    """
    trained, frozen = (params, {}) if partition is None else partition.split_params(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        opt_state=optimizer.init(trained),
        key=jax.random.key_data(jax.random.key(seed)),
        frozen=frozen,
        ema=jax.tree.map(jnp.copy, trained) if averages else None,
    )


def state_shardings(
    mesh: Mesh,
    model: EncoderDecoder,
    optimizer: optax.GradientTransformation,
    *,
    partition: Partition | None = None,
    averages: bool = False,
) -> TrainState:
    """The sharding of each array of the state. Moments have the sharding of their parameter.

    The arguments are those of `initial_state`.
    """
    replicated = sharding.replicated(mesh)
    partition = partition or Partition()
    params, _ = partition.split(models.abstract_params(model))
    param_shardings, of_frozen = partition.split(
        sharding.param_shardings(mesh, models.logical_axes(model))
    )

    def of_moment(leaf: Any, param: Any, of_param: NamedSharding) -> Any:
        if masked(leaf):  # muon has a state for some parameters only
            return leaf
        # Adafactor's factored moments have other axes than their parameter, and are small.
        return of_param if leaf.shape == param.shape else replicated

    def masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    state = jax.eval_shape(optimizer.init, params)
    try:
        opt_state = optax.tree_map_params(
            optimizer,
            of_moment,
            state,
            params,
            param_shardings,
            transform_non_params=lambda _: replicated,
            is_leaf=masked,
        )
    except ValueError:
        # One parameter has several arrays in the state, of other shapes: sm3 has one per axis.
        opt_state = jax.tree.map(lambda _: replicated, state)
    return TrainState(
        step=replicated,
        params=param_shardings,
        opt_state=opt_state,
        key=replicated,
        frozen=of_frozen,
        ema=param_shardings if averages else None,
    )


def train_step(
    state: TrainState,
    batch: Batch | PackedBatch,
    *,
    model: EncoderDecoder,
    optimizer: optax.GradientTransformation,
    schedule: Schedule | None,
    label_smoothing: float,
    z_loss: float,
    micro_batches: int = 1,
    skip_nonfinite: bool = False,
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimizer update. Returns the new state, and metrics of the parameters before it.

    The metric `finite` is 1.0 if the loss, the gradient norm and the norm of the new parameters
    are finite. Otherwise the new state must not be used. Without a `schedule` the metrics have no
    `learning_rate`. micro_batches: parts of the batch whose gradients are computed one after
    another, and summed with the weight of their target tokens. Its documents must be a multiple.
    skip_nonfinite: the metric `skipped` is 1.0 if the loss or the gradient norm is not finite. The
    new state is then the old one with the next `step`, and `finite` is that of its parameters. The
    parameters after an update do not decide: they would have to be computed twice.
    ema_decay: the weight of the earlier average in that of the state, if it has one.
    """
    dropout_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def loss(
        params: Any, batch: Batch | PackedBatch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], prompt_in_decoder.LossMetrics]:
        return prompt_in_decoder.loss(
            model,
            joined(params, state.frozen),
            batch,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            dropout_key=key,
        )

    def gradient(batch: Batch | PackedBatch, key: Key[Array, ""]) -> _Gradient:
        (value, metrics), of_params = jax.value_and_grad(loss, has_aux=True)(
            state.params, batch, key
        )
        if sharding.current_mesh() is not None:
            axes = of_paths_in(models.logical_axes(model), of_params)
            of_params = sharding.constrain_params(of_params, axes)
        return _Gradient(value, metrics, of_params)

    if micro_batches == 1:
        value, metrics, gradients = gradient(batch, dropout_key)
    else:
        value, metrics, gradients = _accumulated(gradient, batch, dropout_key, micro_batches)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    gradient_norm = global_norm(gradients)
    usable = jnp.isfinite(value + gradient_norm)
    ema = None if state.ema is None else _averaged(state.ema, params, ema_decay)
    new = params, opt_state, ema
    if skip_nonfinite:
        old = state.params, state.opt_state, state.ema
        new = jax.tree.map(lambda new, old: jnp.where(usable, new, old), new, old)
    parameter_norm = global_norm(new[0])
    finite = jnp.isfinite(parameter_norm) & (usable | skip_nonfinite)
    report = {
        "loss": jnp.asarray(metrics.loss),
        "token_accuracy": jnp.asarray(metrics.token_accuracy),
        "exact_match": jnp.asarray(metrics.exact_match),
        "target_tokens": jnp.asarray(metrics.target_tokens, jnp.float32),
        "subtasks": jnp.asarray(metrics.subtasks, jnp.float32),
        "gradient_norm": gradient_norm,
        "parameter_norm": parameter_norm,
        "finite": finite.astype(jnp.float32),
    }
    if skip_nonfinite:
        report["skipped"] = (~usable).astype(jnp.float32)
    if schedule is not None:
        report["learning_rate"] = schedule(_updates_so_far(state) if skip_nonfinite else state.step)
    params, opt_state, ema = new
    state = dataclasses.replace(
        state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema
    )
    return state, report


def _updates_so_far(state: TrainState) -> Int[Array, ""]:
    """The number of updates, without skipped steps, as the optimizer counts them.

    The number of steps if the optimizer does not count.
    """
    counts = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if path and getattr(path[-1], "name", None) == "count"
    ]
    return jnp.asarray(counts[-1] if counts else state.step)


def _averaged(ema: Any, params: Any, decay: float) -> Any:
    """The exponential moving average after one more update."""
    return jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, ema, params)


class _Gradient(NamedTuple):
    """The mean loss of a batch, its metrics, and the gradient of the mean loss."""

    value: Float[Array, ""]
    metrics: prompt_in_decoder.LossMetrics
    of_params: Any


def _accumulated(
    gradient: Callable[[Batch | PackedBatch, Key[Array, ""]], _Gradient],
    batch: Batch | PackedBatch,
    key: Key[Array, ""],
    count: int,
) -> _Gradient:
    """The gradient of a batch from those of `count` parts, which a loop computes."""

    def part(x: Array) -> Array:
        # A part has documents of every share of a split batch: nothing moves between devices.
        x = jnp.asarray(x)
        return jnp.moveaxis(x.reshape(len(x) // count, count, *x.shape[1:]), 1, 0)

    def weighted(batch: Batch | PackedBatch, key: Key[Array, ""]) -> _Gradient:
        batch = jax.tree.map(
            lambda x: sharding.constrain(x, "batch", *[None] * (x.ndim - 1)), batch
        )
        value, metrics, of_params = gradient(batch, key)
        tokens = metrics.target_tokens.astype(jnp.float32)
        return _Gradient(value * tokens, metrics, jax.tree.map(lambda x: x * tokens, of_params))

    def add(
        so_far: _Gradient, inputs: tuple[Batch | PackedBatch, Key[Array, ""]]
    ) -> tuple[_Gradient, None]:
        return jax.tree.map(jnp.add, so_far, weighted(*inputs)), None

    inputs = jax.tree.map(part, batch), jax.random.split(key, count)
    first = jax.tree.map(lambda x: x[0], inputs)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(weighted, *first)
    )
    sums, _ = jax.lax.scan(add, zeros, inputs)
    tokens = jnp.maximum(sums.metrics.target_tokens, 1)
    of_params = jax.tree.map(lambda x: x / tokens, sums.of_params)
    return _Gradient(sums.value / tokens, sums.metrics, of_params)


def evaluation_step(
    params: Any, batch: Batch | PackedBatch, *, model: EncoderDecoder
) -> BatchEvaluation:
    """Evaluates a batch with teacher forcing: one forward pass gives loss and exact matches."""
    scores = prompt_in_decoder.target_scores(model, params, batch)
    correct, present = prompt_in_decoder.correct_subtasks(batch, scores.is_highest)
    return BatchEvaluation(
        loss=-jnp.sum(scores.log_probability),
        correct_tokens=jnp.sum(scores.is_highest.astype(jnp.float32)),
        target_tokens=jnp.sum(batch.target_mask.astype(jnp.float32)),
        correct=correct,
        present=present,
    )
