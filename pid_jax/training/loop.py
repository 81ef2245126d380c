"""The training loop: trains a model from a configuration in a working directory.

<workdir>/config.json         the configuration of the run
<workdir>/data.json           fingerprints of the data and of the files in model/
<workdir>/manifest.json       digests of config.json and of the files in model/
<workdir>/model/              config.json, tokenizer, generation_config.json, but no weights
<workdir>/checkpoints/STEP/   the state and the position of the data after a step
<workdir>/checkpoints/frozen/ the parameters that training does not change, if any
<workdir>/metrics.jsonl       the metrics of every step and every evaluation
<workdir>/events/             the same metrics and the speed, for TensorBoard
<workdir>/environment.json    code, libraries, devices and configuration of each start
<workdir>/profile/            a profile of chosen steps
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax import sharding
from pid_jax.atomic_file import replacing
from pid_jax.checkpoints import contents, frozen, verification
from pid_jax.checkpoints.orbax import CONFIG, MODEL, RunCheckpoints
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
    environment,
    fingerprints,
    first_state,
    loggers,
    memory,
    messages,
    mixed_batches,
    profiling,
    run_checks,
    shared_workdir,
    splits,
    step,
    trained_part,
)
from pid_jax.training import config as configuration
from pid_jax.training import optimizer as optimizers
from pid_jax.training.agreed_stop import stop_signals
from pid_jax.training.evaluations import Evaluations, due
from pid_jax.training.metrics_writer import lines_until, writer_of_process
from pid_jax.training.model_flops import ModelFlops
from pid_jax.training.patience import Patience
from pid_jax.training.profiling import StepProfiler
from pid_jax.training.progress import Progress, TokenCounts
from pid_jax.training.skipped_steps import SkippedSteps
from pid_jax.training.step_reports import Diverged as Diverged
from pid_jax.training.step_reports import StepReports
from pid_jax.training.stop_signals import Interrupted
from pid_jax.training.task_score import TaskScore
from pid_jax.training.validation import evaluate_parts

log = logging.getLogger(__name__)


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
    loggers.check_importable(config.train.loggers)
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    run_checks.check_divisible(config, mesh)
    start = exchange.of_first(lambda: run_checks.last_step(workdir))
    if start:
        run_checks.check_same_run(workdir, config)
        run_checks.check_model_files(workdir, start, accept=other_data)
    patience, skipped, evaluated = exchange.of_first(lambda: _history(config, workdir, start))
    if start >= config.train.steps or patience.exhausted:
        if start and other_data and service.is_first():
            _write_config(workdir, config)
        log.info("%s is trained: step %d of %d", workdir, start, config.train.steps)
        if patience.exhausted:
            log.info("%s", patience)
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
    parts = trained_part.parts_of_state(config, model)
    about = optimizers.fingerprint(
        update, first_state.trained_shapes(model, parts["partition"]), of_update=given is not None
    )
    if start:
        fingerprints.check_optimizer(workdir, about)
    read = {**materials.read, fingerprints.OPTIMIZER: about}
    shardings = step.state_shardings(mesh, model, update, **parts)
    own_share = of_processes.share_of_rows(rows)
    train_step, evaluation_step = compiled.training_programs(
        config, mesh, model, update, schedule, shardings
    )
    abstract = compiled.abstract_state(model, update, shardings, **parts)
    memory.check(config, mesh, (train_step, evaluation_step), abstract, materials.largest)
    of_validation = mixed_batches.evaluation_batches(config, validation, model, own_rows)
    evaluations = Evaluations(
        config,
        lambda params, stop: evaluate_parts(params, of_validation, evaluation_step, rows, stop),
        TaskScore(config, model.config, workdir, mesh)
        if config.evaluation.task_score_every_steps
        else None,
    )
    exchange.wait_for_all()  # so that an error until here ends all processes at once
    with RunCheckpoints(
        workdir,
        recent=config.checkpoint.keep_last,
        best_metric=config.checkpoint.best_metric,
        resume_after=start,
    ) as checkpoints:
        if start:
            state = first_state.restored(checkpoints, start, abstract, batches)
            log.info("resumed after step %d", start)
        else:
            state = first_state.new(
                config.seed, model, materials.params, update, shardings, **parts
            )
            frozen.save(workdir, state.frozen)
        del materials  # frees the pretrained parameters
        log.info("%s, %s", messages.of_model(model, state), messages.of_mesh(mesh))

        number, last = start, config.train.steps
        progress = Progress(start, last)
        with (
            stop_signals(mesh) as stop,
            writer_of_process(workdir, config, resume_after=start, evaluated=evaluated) as writer,
            StepProfiler(workdir, profiling.steps(config.train.profile_steps)) as profiler,
        ):
            # Frozen parameters have no gradient, so that fewer FLOPs than usual are needed.
            flops = None if abstract.frozen else ModelFlops(model, abstract.params)
            reports = StepReports(config, workdir, writer, progress, skipped, mesh, flops)
            reports.saved = start

            def save() -> None:
                """Saves, with the metrics of the evaluations that are due."""
                # Only after all steps up to this one are known to be finite or skipped.
                reports.flush()
                profiler.stop()
                with progress.paused():
                    scores = evaluations.at(number, state.evaluated, writer, stop)
                    patience.add(*scores)
                    checkpoints.save(
                        number,
                        state.saved,
                        batches,
                        scores.metrics or None,
                        scores.lower_is_better,
                    )
                reports.saved = number

            if not evaluated:  # a signal interrupted the evaluation
                save()
            while number < last and not patience.exhausted and not stop.requested:
                with progress.waiting("input"):
                    batch = next(batches)
                inputs = of_processes.placed(batch, rows)
                with progress.paused():  # while a new shape is compiled
                    run_step = train_step.compile(state, inputs, label=inputs.shape)
                if number == start and service.is_first():
                    with progress.paused():
                        _describe_run(workdir, config, read)
                        environment.record(workdir, config, mesh, start)
                # The explicit transfer of the batch is the only one. An implicit transfer would
                # stall the device.
                with jax.transfer_guard("disallow"), profiler.step(number + 1, state):
                    state, on_device = run_step(state, inputs)
                number += 1
                profiler.started(number, on_device)
                # Fetches the metrics of the preceding step while this one runs.
                reports.add(number, TokenCounts.of(batch, own_share), inputs, on_device)

                if evaluations.due(number) or number % config.checkpoint.every_steps == 0:
                    save()

            if reports.flush():
                checkpoints.save(number, state.saved, batches)
                reports.saved = number
            checkpoints.wait()
            if stop.agreed is not None and number < last and not patience.exhausted:
                done = f"after step {number}, saved in {workdir}" if number else "before step 1"
                raise Interrupted(
                    stop.agreed, f"stopped {done}: run the same command again to continue"
                )
        if number < last:
            log.info("%s", patience)
        log.info(
            "trained %d steps; best by %s: step %s",
            number,
            config.checkpoint.best_metric,
            checkpoints.best_step,
        )
        return number


class _Materials(NamedTuple):
    """The model and the data of a run."""

    model: EncoderDecoder
    params: Params | None
    """Pretrained parameters. None for new ones and for a resumed run."""
    batches: Any
    validation: Mapping[str, TokenSource]
    """By the names of the parts of the mixture."""
    largest: tuple[Sequence[memory.Shape], Sequence[memory.Shape]]
    """The shapes of the largest batches of training and validation, one for each task."""
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


def _history(config: ConfigDict, workdir: Path, start: int) -> tuple[Patience, SkippedSteps, bool]:
    """What metrics.jsonl says of the run until step `start`.

    The last item is False if an evaluation after that step is missing.
    """
    lines = lines_until(workdir, start) if start else []
    written = {line.get("split") for line in lines if line["step"] == start}
    evaluated = start == 0 or written.issuperset(due(config, start))
    if not evaluated:
        lines = lines_until(workdir, start, evaluated=False)
    return (
        Patience(config.checkpoint.best_metric, config.checkpoint.patience, lines),
        SkippedSteps(config.train.max_nonfinite_steps, lines),
        evaluated,
    )


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
