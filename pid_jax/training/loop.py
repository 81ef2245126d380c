"""The training loop: from a configuration and a working directory to a trained model.

<workdir>/config.json       the configuration of the run
<workdir>/data.json         fingerprints of the data and of the files in model/
<workdir>/model/            config.json, tokenizer, generation_config.json: all but weights
<workdir>/checkpoints/N/    the state and the data's position after step N
<workdir>/metrics.jsonl     every step's and every evaluation's figures
<workdir>/events.out.*      the same and the speed, for TensorBoard
"""

import functools
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax import directory_lock, models, sharding
from pid_jax.atomic_file import replacing
from pid_jax.checkpoints import contents
from pid_jax.checkpoints.orbax import CONFIG, MODEL, RunCheckpoints, saved_steps
from pid_jax.data.batching import Batch
from pid_jax.data.tokenizing import TokenizedExamples
from pid_jax.disk_errors import in_one_sentence
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import CompiledFunction, Programs
from pid_jax.training import assembly, fingerprints, step
from pid_jax.training import config as configuration
from pid_jax.training import optimizer as optimizers
from pid_jax.training.metrics_writer import MetricsWriter
from pid_jax.training.progress import Progress
from pid_jax.training.stop_signals import Interrupted, StopSignals

log = logging.getLogger(__name__)


class Diverged(Exception):
    """The loss or the parameters are no longer finite. Nothing of that was saved."""


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    other_data: bool = False,
    optimizer: optax.GradientTransformation | None = None,
) -> int:
    """Trains to step `config.train.steps`, from the last checkpoint in `workdir` if there is one.

    other_data: go on although the data is not what the run has read so far. optimizer: replaces
    that of `config.optimizer`, with its clipping, weight decay and schedule. The metrics then have
    no learning rate, and the run goes on only with an optimizer of the same state. Returns the last
    step. Raises UserError for what the user can mend, a full disk and another process that trains
    in `workdir` among it, Diverged where the loss is not finite, Interrupted (after saving) on
    SIGTERM or Ctrl-C.
    """
    if optimizer is not None:
        optimizers.check_given(optimizer)
        config = configuration.with_optimizer_from_python(config)
    workdir = Path(workdir)
    with in_one_sentence(workdir, lambda: _what_stands(workdir)):
        workdir.mkdir(parents=True, exist_ok=True)
        with directory_lock.writing(
            workdir, "another train.py is at work there: wait for it, or use another --workdir"
        ):
            return _train(config, workdir, other_data, optimizer)


def _what_stands(workdir: Path) -> str:
    steps = saved_steps(workdir)
    again = "Run the same command again once that is mended"
    if steps:
        return f"the checkpoint of step {steps[-1]} is intact. {again}, to go on from there"
    return f"nothing was saved yet. {again}"


def _train(
    config: ConfigDict,
    workdir: Path,
    other_data: bool,
    given: optax.GradientTransformation | None,
) -> int:
    if (workdir / CONFIG).exists() and not contents.is_run(workdir):
        raise UserError(
            f"{workdir / CONFIG} is not a training run's and would be lost: use another --workdir"
        )
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    _check_divisible(config, mesh)
    start = max(saved_steps(workdir), default=0)
    if start:
        _check_same_run(workdir, config)
    if start >= config.train.steps:
        log.info("%s is trained: step %d of %d", workdir, start, config.train.steps)
        return start

    materials = _prepare(config, workdir, resuming=start > 0, other_data=other_data)
    model, batches, held_out = materials.model, materials.batches, materials.held_out
    update = optimizers.build(config) if given is None else given
    schedule = optimizers.learning_rate(config) if given is None else None
    about = optimizers.fingerprint(
        update, models.abstract_params(model), of_update=given is not None
    )
    if start:
        fingerprints.check_optimizer(workdir, about)
    read = {**materials.read, fingerprints.OPTIMIZER: about}
    shardings = step.state_shardings(mesh, model, update)
    rows = sharding.batch_sharding(mesh)
    train_step, evaluation_step = _programs(config, mesh, model, update, schedule, shardings)
    with RunCheckpoints(
        workdir,
        keep_last=config.checkpoint.keep_last,
        best_metric=config.checkpoint.best_metric,
    ) as checkpoints:
        if start:
            abstract = _abstract_state(model, update, shardings)
            state = step.TrainState(**checkpoints.restore(start, vars(abstract), batches))
            log.info("resumed after step %d", start)
        else:
            state = _first_state(config, model, materials.params, update, shardings)
        del materials  # frees pretrained parameters, which the state has a copy of
        log.info("%s, %s", _describe_model(model, state), _describe_mesh(mesh))

        number, saved, last = start, start, config.train.steps
        progress = Progress(start, last)
        pending: tuple[Batch, Any] | None = None
        with StopSignals() as stop, MetricsWriter(workdir, resume_after=start) as writer:

            def report(finished: int, batch: Batch, on_device: Any) -> None:
                """Fetches and writes the figures of a step; waits for it to be computed."""
                metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
                if not metrics.pop("finite"):
                    raise Diverged(_divergence(finished, metrics, saved, workdir))
                shown = finished % config.train.log_every_steps == 0 or finished == last
                writer.write(finished, "train", metrics, events=shown)
                progress.add(documents=config.data.batch_size, tokens=_tokens(batch))
                if shown:
                    rates = progress.rates(finished)
                    writer.write_events(finished, rates)
                    log.info("%s", progress.line(finished, metrics, rates))

            while number < last and not stop.requested:
                batch = next(batches)
                with progress.paused():  # while a new shape is compiled
                    run_step = train_step.compile(state, batch, label=batch.shape)
                if number == start:
                    _describe_run(workdir, config, read)
                # Nothing but the batch goes to the device, and nothing comes back here: a
                # transfer that is not written out would make the device wait.
                with jax.transfer_guard("disallow"):
                    state, on_device = run_step(state, jax.device_put(batch, rows))
                number += 1
                if pending is not None:
                    # Step `number` is running while the figures of the one before are fetched.
                    report(number - 1, *pending)
                pending = batch, on_device

                evaluating = number % config.evaluation.every_steps == 0 or number == last
                if evaluating or number % config.checkpoint.every_steps == 0:
                    # Nothing is saved before every loss up to it is known to be finite.
                    report(number, *pending)
                    pending = None
                    metrics = None
                    with progress.paused():
                        if evaluating:
                            metrics = evaluate(
                                state.params,
                                assembly.evaluation_batches(config, held_out, model),
                                held_out.subtask_counts,
                                evaluation_step,
                                rows,
                                # Cut short by a signal, but for the last: no rerun would make
                                # it, and without it the best checkpoint is not known.
                                stop if number < last else None,
                            )
                        if metrics is not None:
                            writer.write(number, "validation", metrics)
                            log.info("step %d  validation: %s", number, _listed(metrics))
                        checkpoints.save(number, vars(state), batches, metrics)
                    saved = number

            if pending is not None:
                report(number, *pending)
                checkpoints.save(number, vars(state), batches)
                saved = number
            checkpoints.wait()
            if stop.received is not None and number < last:
                done = f"after step {number}, saved in {workdir}" if number else "before step 1"
                raise Interrupted(
                    stop.received, f"stopped {done}: run the same command again to go on"
                )
        log.info(
            "trained %d steps; best by %s: step %s",
            last,
            config.checkpoint.best_metric,
            checkpoints.best_step,
        )
        return last


def evaluate(
    params: Any,
    batches: Iterator[Batch],
    subtask_counts: np.ndarray,
    evaluation_step: CompiledFunction,
    rows: jax.sharding.NamedSharding,
    stop: StopSignals | None,
) -> dict[str, float] | None:
    """Teacher-forced figures over all of `batches`; None after a signal to `stop`.

    loss (nats per target token), token_accuracy, exact_match (share of targets that greedy
    decoding yields) and joint_exact_match (share of documents of which it yields every target).
    `subtask_counts`: how many subtasks each document has, in the order of the batches.
    """
    loss = correct_tokens = target_tokens = 0.0
    correct = []
    for batch in batches:
        if stop is not None and stop.requested:
            return None
        on_device = jax.device_put(batch, rows)
        figures = jax.device_get(evaluation_step(params, on_device, label=batch.shape))
        loss += float(figures.loss)
        correct_tokens += float(figures.correct_tokens)
        target_tokens += float(figures.target_tokens)
        # Row by row this is the order of the examples and their subtasks, under PiE too.
        correct.append(figures.correct[figures.present])
    every = np.concatenate(correct)
    ends = np.cumsum(subtask_counts)
    joint = [
        every[end - count : end].all() for end, count in zip(ends, subtask_counts, strict=True)
    ]
    return {
        "loss": loss / target_tokens,
        "token_accuracy": correct_tokens / target_tokens,
        "exact_match": float(every.mean()),
        "joint_exact_match": float(np.mean(joint)),
    }


class _Materials(NamedTuple):
    """What a run is made of, beside its state."""

    model: EncoderDecoder
    params: Params | None
    """Those to start from; None where the state does not come from elsewhere."""
    batches: Any
    held_out: TokenizedExamples
    read: Mapping[str, Mapping[str, Any]]
    """Fingerprints of the data and the files in model/."""


def _prepare(config: ConfigDict, workdir: Path, *, resuming: bool, other_data: bool) -> _Materials:
    """Reads the data; makes model and tokenizer, in the workdir, or reads them there."""
    examples = assembly.read_examples(config, config.data.train_split)
    params = None
    if resuming:
        model, tokenizer = assembly.saved_model(config, workdir / MODEL)
    else:
        model, params, tokenizer = assembly.new_model(config, examples)
        generation = assembly.generation_of(config)
        assembly.save_model(workdir / MODEL, model, tokenizer, generation)

    held_out_examples = assembly.evenly_spaced(
        assembly.read_examples(config, config.data.validation_split), config.evaluation.documents
    )
    train, validation = fingerprints.Examples(examples), fingerprints.Examples(held_out_examples)
    source = assembly.tokenize(config, train, model, tokenizer)
    held_out = assembly.tokenize(config, validation, model, tokenizer)
    read = fingerprints.of_run(config, train, validation, workdir / MODEL)
    if resuming:
        fingerprints.check(workdir, read, other_data=other_data)
    for split, tokenized in (
        (config.data.train_split, source),
        (config.data.validation_split, held_out),
    ):
        log.info("%s: %s documents; %s", split, len(tokenized), tokenized.truncation_report())
        if (targets := tokenized.target_report()).changed:
            log.warning("%s: %s", split, targets)
    if held_out.without_target().any():
        raise UserError(
            f"the split {config.data.validation_split!r} has subtasks without a target: "
            "an evaluation needs one for every subtask"
        )
    batches = assembly.training_batches(config, source, model, tokenizer)
    return _Materials(model, params, batches, held_out, read)


def _describe_run(workdir: Path, config: ConfigDict, read: Mapping[str, Mapping[str, Any]]) -> None:
    """What the run is from now on: a command that is refused leaves it as it was."""
    fingerprints.write(workdir, read)
    with replacing(workdir / CONFIG) as file:
        file.write_text(configuration.to_json(config), encoding="utf-8")


def _programs(
    config: ConfigDict,
    mesh: Mesh,
    model: EncoderDecoder,
    update: optax.GradientTransformation,
    schedule: optimizers.Schedule | None,
    shardings: step.TrainState,
) -> tuple[CompiledFunction, CompiledFunction]:
    """The training step, which takes over its state's memory, and the evaluation of a batch."""
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    train_step = functools.partial(
        step.train_step,
        model=model,
        optimizer=update,
        schedule=schedule,
        label_smoothing=config.train.label_smoothing,
        z_loss=config.train.z_loss,
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
        in_shardings=(shardings.params, rows),
        out_shardings=whole,
    )
    return step_program, evaluation_program


def _check_divisible(config: ConfigDict, mesh: Mesh) -> None:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for key in ("data.batch_size", "evaluation.batch_size"):
        size = configuration.get(config, key)
        if size % parts:
            raise UserError(
                f"config.{key} is {size}: it must be a multiple of {parts}, the number of devices "
                "along the mesh axes data and fsdp"
            )


def _check_same_run(workdir: Path, config: ConfigDict) -> None:
    """A run goes on under its own configuration; harmless changes are logged, others refused."""
    file = workdir / CONFIG
    if not file.exists():
        raise UserError(f"{workdir} has checkpoints but no {CONFIG}: use another --workdir")
    changed = {
        key: f"config.{key} was {json.dumps(before)}, is {json.dumps(now)}"
        for key, (before, now) in configuration.differences(
            configuration.read_saved(file), json.loads(configuration.to_json(config))
        ).items()
        if not configuration.under(key, configuration.WITHOUT_EFFECT_ON_TRAINING)
    }
    refused = [
        sentence
        for key, sentence in changed.items()
        if configuration.under(key, configuration.FIXED_BY_CHECKPOINT)
    ]
    if refused:
        raise UserError(
            f"{workdir} holds a run with another configuration: {'; '.join(refused)}. Use another "
            "--workdir, or the old values to go on"
        )
    for sentence in changed.values():
        log.warning("%s: the run goes on with the new value", sentence)


def _first_state(
    config: ConfigDict,
    model: EncoderDecoder,
    params: Params | None,
    update: Any,
    shardings: step.TrainState,
) -> step.TrainState:
    """The state before step 1: from `params`, or from new ones where that is None."""
    seed = config.seed
    if params is None:
        key = jax.random.fold_in(jax.random.key(seed), 1)
        make = jax.jit(
            lambda key: step.initial_state(models.init_params(model, key), update, seed),
            out_shardings=shardings,
        )
        return make(key)
    make = jax.jit(lambda params: step.initial_state(params, update, seed), out_shardings=shardings)
    return make(jax.device_put(params, shardings.params))


def _abstract_state(
    model: EncoderDecoder, update: Any, shardings: step.TrainState
) -> step.TrainState:
    shapes = jax.eval_shape(
        lambda: step.initial_state(models.init_params(model, jax.random.key(0)), update, 0)
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def _tokens(batch: Batch) -> int:
    """The real tokens that a step reads: documents, prompts and targets."""
    return int(batch.document_mask.sum() + batch.prompt_mask.sum() + batch.target_mask.sum())


def _divergence(number: int, metrics: Mapping[str, float], saved: int, workdir: Path) -> str:
    where = (
        f"the checkpoint of step {saved} in {workdir} is intact"
        if saved
        else "nothing was saved yet"
    )
    return (
        f"step {number}: the loss is {metrics['loss']}, the gradient's norm "
        f"{metrics['gradient_norm']}, the parameters' norm {metrics['parameter_norm']}. Stopped "
        f"without saving; {where}. A lower config.optimizer.learning_rate, a longer "
        "config.optimizer.warmup_steps or config.optimizer.clip_norm may help"
    )


def _describe_model(model: EncoderDecoder, state: step.TrainState) -> str:
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    return f"{model.config.model_type} with {size:,} parameters"


def _describe_mesh(mesh: Mesh) -> str:
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    kind = jax.devices()[0].platform
    return f"{mesh.size} {kind} device{'s' if mesh.size > 1 else ''}" + (
        f" ({axes})" if axes else ""
    )


def _listed(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
