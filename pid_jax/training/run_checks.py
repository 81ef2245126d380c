"""What a run checks before it starts, or goes on: its checkpoints, files and configuration."""

import json
import logging
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax.checkpoints import contents, manifest, orbax, verification
from pid_jax.checkpoints.orbax import CONFIG
from pid_jax.errors import UserError
from pid_jax.training import config as configuration

log = logging.getLogger(__name__)


def last_step(workdir: Path) -> int:
    """The step of the newest intact checkpoint, or 0. Logs those that are damaged.

    Raises UserError if all are damaged.
    """
    orbax.recover_replaced(workdir)
    step, skipped = verification.newest_intact(workdir)
    for problem in skipped.values():
        log.warning("%s", problem)
    if step is None and skipped:
        raise UserError(
            f"{workdir} has no intact checkpoint: {'; '.join(skipped.values())}. Restore the files "
            "from a copy, or use another --workdir to train from the start"
        )
    return step or 0


def check_model_files(workdir: Path, step: int, *, accept: bool) -> None:
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


def check_divisible(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError, naming the key, for a batch size that the devices do not divide."""
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


def check_same_run(workdir: Path, config: ConfigDict) -> None:
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
        and not configuration.under(key, configuration.CHANGEABLE)
    ]
    if refused:
        raise UserError(
            f"{workdir} holds a run with another configuration: {'; '.join(refused)}. Use another "
            "--workdir, or the old values to continue"
        )
    for sentence in changed.values():
        log.warning("%s: the run continues with the new value", sentence)
