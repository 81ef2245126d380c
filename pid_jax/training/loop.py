"""The training loop: trains a model from a configuration in a working directory.

<workdir>/config.json       the configuration of the run
<workdir>/data.json         fingerprints of the data and of the files in model/
<workdir>/manifest.json     digests of config.json and of the files in model/
<workdir>/model/            config.json, tokenizer, generation_config.json, but no weights
<workdir>/checkpoints/STEP/ the state and the position of the data after a step
<workdir>/metrics.jsonl     the metrics of every step and every evaluation
<workdir>/events/           the same metrics and the speed, for TensorBoard
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax import models, sharding
from pid_jax.atomic_file import replacing
from pid_jax.checkpoints import contents, manifest, verification
from pid_jax.checkpoints.orbax import CONFIG, MODEL, RunCheckpoints
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.data.pipeline import OwnRows
from pid_jax.data.token_source import TokenSource
from pid_jax.disk_errors import in_one_sentence
from pid_jax.distributed import exchange, service
from pid_jax.distributed import rows as of_processes
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.training import (
    assembly,
    compiled,
    fingerprints,
    memory,
    messages,
    mixed_batches,
    shared_workdir,
    splits,
    step,
)
from pid_jax.training import config as configuration
from pid_jax.training import optimizer as optimizers
from pid_jax.training.agreed_stop import stop_signals
from pid_jax.training.metrics_writer import writer_of_process
from pid_jax.training.progress import Progress
from pid_jax.training.stop_signals import Interrupted
from pid_jax.training.validation import evaluate_parts

log = logging.getLogger(__name__)


class Diverged(Exception):
    """The loss or the parameters are no longer finite. The state was not saved."""


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    other_data: bool = False,
    optimizer: optax.GradientTransformation | None = None,
) -> int:
    """Trains to step `config.train.steps`, from the last intact checkpoint in `workdir`, if any.

    other_data: continue a run although its data, or a file in model/, has changed. optimizer:
    replaces that of `config.optimizer`, including clipping, weight decay and schedule. The metrics
    then have no learning rate, and the run can resume only with an optimizer of the same state.
    Under several processes, all must call this with the same arguments, after
    `jax.distributed.initialize`. The first one writes all files but checkpoints.
    Returns the last step. Raises UserError for errors that the user can correct, including a full
    disk, another process that trains in `workdir` and damage to all checkpoints, Diverged if the
    loss is not finite, and Interrupted (after saving) on SIGTERM or Ctrl-C.
    """
    if optimizer is not None:
        optimizers.check_given(optimizer)
        config = configuration.with_optimizer_from_python(config)
    workdir = Path(workdir)
    service.check_initialized()
    with (
        in_one_sentence(workdir, lambda: messages.state_of(workdir)),
        shared_workdir.locked(
            workdir, "another train.py uses it: wait for it, or use another --workdir"
        ),
    ):
        return _train(config, workdir, other_data, optimizer)


def _train(
    config: ConfigDict,
    workdir: Path,
    other_data: bool,
    given: optax.GradientTransformation | None,
) -> int:
    if (workdir / CONFIG).exists() and not contents.is_run(workdir):
        raise UserError(
            f"{workdir / CONFIG} is not that of a training run and would be overwritten: use "
            "another --workdir"
        )
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    _check_divisible(config, mesh)
    start = exchange.of_first(lambda: last_step(workdir))
    if start:
        _check_same_run(workdir, config)
        _check_model_files(workdir, start, accept=other_data)
    if start >= config.train.steps:
        if start and other_data and service.is_first():
            _write_config(workdir, config)
        log.info("%s is trained: step %d of %d", workdir, start, config.train.steps)
        return start

    rows = sharding.batch_sharding(mesh)
    own_rows = functools.partial(of_processes.own_rows, rows)
    materials = _prepare(
        config,
        workdir,
        resuming=start > 0,
        other_data=other_data,
        mesh=mesh,
        own_rows=own_rows,
    )
    model, batches, validation = materials.model, materials.batches, materials.validation
    update = optimizers.build(config) if given is None else given
    schedule = optimizers.learning_rate(config) if given is None else None
    about = optimizers.fingerprint(
        update, models.abstract_params(model), of_update=given is not None
    )
    if start:
        fingerprints.check_optimizer(workdir, about)
    read = {**materials.read, fingerprints.OPTIMIZER: about}
    shardings = step.state_shardings(mesh, model, update)
    own_share = of_processes.share_of_rows(rows)
    train_step, evaluation_step = compiled.training_programs(
        config, mesh, model, update, schedule, shardings
    )
    abstract = compiled.abstract_state(model, update, shardings)
    memory.check(config, mesh, (train_step, evaluation_step), abstract, materials.largest)
    exchange.wait_for_all()  # so that an error until here ends all processes at once
    with RunCheckpoints(
        workdir,
        recent=config.checkpoint.keep_last,
        best_metric=config.checkpoint.best_metric,
        resume_after=start,
    ) as checkpoints:
        if start:
            state = step.TrainState(**checkpoints.restore(start, vars(abstract), batches))
            log.info("resumed after step %d", start)
        else:
            state = _first_state(config, model, materials.params, update, shardings)
        del materials  # frees the pretrained parameters
        log.info("%s, %s", messages.of_model(model, state), messages.of_mesh(mesh))

        number, saved, last = start, start, config.train.steps
        progress = Progress(start, last)
        task_of = mixed_batches.task_of_steps(config)
        pending: tuple[Batch, Any] | None = None
        with stop_signals(mesh) as stop, writer_of_process(workdir, resume_after=start) as writer:

            def report(finished: int, batch: Batch, on_device: Any) -> None:
                """Fetches and writes the metrics of a step. Blocks until they are computed."""
                metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
                if not metrics.pop("finite"):
                    raise Diverged(messages.divergence(finished, metrics, saved, workdir))
                shown = finished % config.train.log_every_steps == 0 or finished == last
                writer.write(finished, "train", metrics, events=shown, task=task_of(finished))
                tokens = round(_tokens(batch) / own_share)
                progress.add(documents=config.data.batch_size, tokens=tokens)
                if shown:
                    rates = progress.rates(finished)
                    writer.write_events(finished, rates)
                    log.info("%s", progress.line(finished, metrics, rates))

            while number < last and not stop.requested:
                batch = next(batches)
                inputs = of_processes.placed(batch, rows)
                with progress.paused():  # while a new shape is compiled
                    run_step = train_step.compile(state, inputs, label=inputs.shape)
                if number == start and service.is_first():
                    _describe_run(workdir, config, read)
                # The explicit transfer of the batch is the only one. An implicit transfer would
                # stall the device.
                with jax.transfer_guard("disallow"):
                    state, on_device = run_step(state, inputs)
                number += 1
                if pending is not None:
                    # Fetches the metrics of the preceding step while this one runs.
                    report(number - 1, *pending)
                pending = batch, on_device

                evaluating = number % config.evaluation.every_steps == 0 or number == last
                if evaluating or number % config.checkpoint.every_steps == 0:
                    # Saves only after all losses up to this step are known to be finite.
                    report(number, *pending)
                    pending = None
                    metrics = None
                    with progress.paused():
                        if evaluating:
                            metrics = evaluate_parts(
                                state.params,
                                mixed_batches.evaluation_batches(
                                    config, validation, model, own_rows
                                ),
                                evaluation_step,
                                rows,
                                # A signal interrupts all evaluations but the last, which a
                                # resumed run would not repeat.
                                stop if number < last else None,
                            )
                        if metrics is not None:
                            writer.write(number, "validation", metrics)
                            log.info("step %d  validation: %s", number, messages.listed(metrics))
                        checkpoints.save(number, vars(state), batches, metrics)
                    saved = number

            if pending is not None:
                report(number, *pending)
                checkpoints.save(number, vars(state), batches)
                saved = number
            checkpoints.wait()
            if stop.agreed is not None and number < last:
                done = f"after step {number}, saved in {workdir}" if number else "before step 1"
                raise Interrupted(
                    stop.agreed, f"stopped {done}: run the same command again to continue"
                )
        log.info(
            "trained %d steps; best by %s: step %s",
            last,
            config.checkpoint.best_metric,
            checkpoints.best_step,
        )
        return last


class _Materials(NamedTuple):
    """The model and the data of a run."""

    model: EncoderDecoder
    params: Params | None
    """Pretrained parameters. None for new ones and for a resumed run."""
    batches: Any
    validation: Mapping[str, TokenSource]
    """By the names of the parts of the mixture."""
    largest: tuple[BatchShape, BatchShape]
    """The shapes of the largest batches of training and validation."""
    read: Mapping[str, Mapping[str, Any]]
    """Fingerprints of the data and the files in model/."""


def _prepare(
    config: ConfigDict,
    workdir: Path,
    *,
    resuming: bool,
    other_data: bool,
    mesh: Mesh | None = None,
    own_rows: OwnRows = np.arange,
) -> _Materials:
    """Reads the data. Creates model and tokenizer in the workdir, or reads them when resuming.

    mesh: pretrained parameters are sharded over its devices. None for the first device. own_rows:
    the rows of a batch that this process has.
    """
    data = splits.of_run(config, workdir)
    params = None
    if not resuming and (service.is_first() or config.model.init):
        texts = splits.tokenizer_texts(data)
        model, params, tokenizer = assembly.new_model(config, texts, mesh)
    if not resuming:
        if service.is_first():
            assembly.save_model(workdir / MODEL, model, tokenizer, assembly.generation_of(config))
        exchange.wait_for_all()
    if resuming or not service.is_first():
        model, tokenizer = assembly.saved_model(config, workdir / MODEL)

    train: list[TokenSource] = []
    validation: dict[str, TokenSource] = {}
    read: dict[str, Mapping[str, Any]] = {}
    for part, train_split, validation_split in data:
        tokens = train_split.tokens(model, tokenizer)
        evaluated = validation_split.tokens(model, tokenizer)
        name = part.name if len(data) > 1 else ""
        read |= fingerprints.of_data(part.config, tokens, evaluated, name)
        train.append(tokens.source)
        validation[part.name] = evaluated.source
    read |= fingerprints.of_model(workdir / MODEL)
    if resuming:
        fingerprints.check(workdir, read, other_data=other_data)
    for (part, train_split, validation_split), source in zip(data, train, strict=True):
        splits.report(train_split, source.statistics)
        splits.report(validation_split, validation[part.name].statistics)
        if validation[part.name].statistics.without_target.count:
            raise UserError(
                f"the split {validation_split.name!r} of {part.name} has subtasks without a "
                "target: an evaluation needs one for every subtask"
            )
    batches = mixed_batches.training_batches(config, train, model, tokenizer, own_rows)
    largest = mixed_batches.largest_batches(config, train, list(validation.values()), model)
    return _Materials(model, params, batches, validation, largest, read)


def _describe_run(workdir: Path, config: ConfigDict, read: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes data.json and config.json, after all checks, so that errors leave them unchanged."""
    fingerprints.write(workdir, read)
    _write_config(workdir, config)


def _write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, and the manifest of it and of the files in model/."""
    text = configuration.to_json(config)
    verification.describe(workdir, text)
    with replacing(workdir / CONFIG) as file:
        file.write_text(text, encoding="utf-8")


def last_step(workdir: Path) -> int:
    """The step of the newest intact checkpoint, or 0. Logs those that are damaged.

    Raises UserError if all are damaged.
    """
    step, skipped = verification.newest_intact(workdir)
    for problem in skipped.values():
        log.warning("%s", problem)
    if step is None and skipped:
        raise UserError(
            f"{workdir} has no intact checkpoint: {'; '.join(skipped.values())}. Restore the files "
            "from a copy, or use another --workdir to train from the start"
        )
    return step or 0


def _check_model_files(workdir: Path, step: int, *, accept: bool) -> None:
    """Raises UserError if a file in model/ is not what it was when the run last started.

    accept: logs a warning instead.
    """
    checkpoint = workdir / contents.CHECKPOINTS / str(step)
    wrong = verification.problems_of_description(workdir, checkpoint, model_only=True)
    if not wrong:
        return
    problem = f"the model and tokenizer are not those of {manifest.FILE}: {manifest.listed(wrong)}"
    if not accept:
        raise UserError(
            f"{workdir} holds a run with other data: {problem}. Restore the files from a copy, use "
            "another --workdir, or pass --other-data to continue with these"
        )
    log.warning("%s: %s", workdir, problem)


def _check_divisible(config: ConfigDict, mesh: Mesh) -> None:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    micro_batches = config.train.micro_batches
    for key, factor in (("data.batch_size", micro_batches), ("evaluation.batch_size", 1)):
        size = configuration.get(config, key)
        if size % (parts * factor):
            times = f", times config.train.micro_batches={factor}" if factor > 1 else ""
            raise UserError(
                f"config.{key} is {size}: it must be a multiple of {parts * factor}, the number of "
                f"devices along the mesh axes data and fsdp{times}"
            )


def _check_same_run(workdir: Path, config: ConfigDict) -> None:
    """Compares with the run's configuration. Logs harmless changes, raises UserError for others."""
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
            "--workdir, or the old values to continue"
        )
    for sentence in changed.values():
        log.warning("%s: the run continues with the new value", sentence)


def _first_state(
    config: ConfigDict,
    model: EncoderDecoder,
    params: Params | None,
    update: Any,
    shardings: step.TrainState,
) -> step.TrainState:
    """The state before step 1, with `params` as they are, or with new parameters for None."""
    seed = config.seed
    if params is None:
        key = jax.random.fold_in(jax.random.key(seed), 1)
        make = jax.jit(
            lambda key: step.initial_state(models.init_params(model, key), update, seed),
            out_shardings=shardings,
        )
        return make(key)

    def others(params: Params) -> step.TrainState:
        return dataclasses.replace(step.initial_state(params, update, seed), params=None)

    # The program returns no parameters, because it would copy them.
    state = jax.jit(others, out_shardings=dataclasses.replace(shardings, params=None))(params)
    return dataclasses.replace(state, params=params)


def _tokens(batch: Batch) -> int:
    """The number of tokens in a batch without padding: documents, prompts and targets."""
    return int(batch.document_mask.sum() + batch.prompt_mask.sum() + batch.target_mask.sum())
