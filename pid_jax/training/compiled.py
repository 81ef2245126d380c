"""The compiled programs of training and the shapes of their arguments.

Nothing here needs arrays. `pid_jax.compile_ahead` compiles these programs from shapes alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax import models, sharding
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.data.packing import PackedBatch, PackedShape
from pid_jax.models.partition import Partition
from pid_jax.models.protocol import EncoderDecoder
from pid_jax.programs import CompiledFunction, Programs
from pid_jax.training import optimizer as optimizers
from pid_jax.training import step


def training_programs(
    config: ConfigDict,
    mesh: Mesh,
    model: EncoderDecoder,
    update: optax.GradientTransformation,
    schedule: optimizers.Schedule | None,
    shardings: step.TrainState,
) -> tuple[CompiledFunction, CompiledFunction]:
    """The programs of the training step, which donates its state, and of an evaluation batch."""
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    train_step = functools.partial(
        step.train_step,
        model=model,
        optimizer=update,
        schedule=schedule,
        label_smoothing=config.train.label_smoothing,
        z_loss=config.train.z_loss,
        micro_batches=config.train.micro_batches,
        skip_nonfinite=config.train.max_nonfinite_steps > 0,
        ema_decay=config.train.ema_decay,
    )
    programs = Programs()
    step_program = CompiledFunction(
        programs,
        "training step",
        train_step,
        constant_shapes=1,
        donate_argnums=0,
        in_shardings=(shardings, rows),
        out_shardings=(shardings, whole),
    )
    evaluation_program = CompiledFunction(
        programs,
        "evaluation",
        functools.partial(step.evaluation_step, model=model),
        constant_shapes=1,
        in_shardings=(shardings.evaluated, rows),
        out_shardings=whole,
    )
    return step_program, evaluation_program


def abstract_state(
    model: EncoderDecoder,
    update: optax.GradientTransformation,
    shardings: step.TrainState,
    *,
    partition: Partition | None = None,
    averages: bool = False,
) -> step.TrainState:
    """The shapes, dtypes and shardings of the training state, as `jax.ShapeDtypeStruct`s.

    The other arguments are those of `step.initial_state`.
    """

    def first() -> step.TrainState:
        params = models.init_params(model, jax.random.key(0))
        return step.initial_state(params, update, 0, partition=partition, averages=averages)

    shapes = jax.eval_shape(first)
    return jax.tree.map(
        lambda leaf, of_leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of_leaf),
        shapes,
        shardings,
    )


def abstract_batch(shape: BatchShape | PackedShape, mesh: Mesh) -> Batch | PackedBatch:
    """The shapes, dtypes and shardings of a training batch, as `jax.ShapeDtypeStruct`s."""
    rows = sharding.batch_sharding(mesh)

    def of(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

    documents = of(jnp.int32, shape.documents, shape.document_tokens)
    document_mask = of(jnp.bool_, shape.documents, shape.document_tokens)
    if isinstance(shape, PackedShape):
        of_rows = of(jnp.int32, shape.documents, shape.rows, shape.row_tokens)
        of_targets = of(jnp.int32, shape.documents, shape.target_tokens)
        return PackedBatch(
            documents,
            document_mask,
            tokens=of_rows,
            segments=of_rows,
            positions=of_rows,
            predicting=of_targets,
            targets=of_targets,
            target_mask=of(jnp.bool_, shape.documents, shape.target_tokens),
        )
    prompts = shape.documents, shape.prompts
    return Batch(
        documents,
        document_mask,
        prompts=of(jnp.int32, *prompts, shape.prompt_tokens),
        prompt_mask=of(jnp.bool_, *prompts, shape.prompt_tokens),
        targets=of(jnp.int32, *prompts, shape.target_tokens),
        target_mask=of(jnp.bool_, *prompts, shape.target_tokens),
    )
