"""Verification of training runs: which files must be what they were when they were written.

`<workdir>/checkpoints/<step>/manifest.json` has all files of a checkpoint, and is complete before
the checkpoint becomes visible. `<workdir>/checkpoints/frozen/manifest.json` has those of the
parameters that all checkpoints share, if there are any. `<workdir>/manifest.json` has the run's
description: `config.json` and the files in `model/`. Checkpoints of earlier versions have no
manifest, and are not verified. Later ones say in Orbax's metadata that they have one, so that a
missing manifest is damage.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pid_jax.checkpoints import manifest
from pid_jax.checkpoints.contents import CHECKPOINTS, FROZEN, saved_steps

log = logging.getLogger(__name__)

MARKER = {"manifest": manifest.VERSION}
"""In Orbax's metadata of checkpoints that have a manifest."""
_METADATA = "_CHECKPOINT_METADATA"
_DESCRIBED = "description"
_FROZEN = "frozen"
"""In the manifest of a checkpoint, the digest of the manifest of its frozen parameters."""
_CONFIG, _MODEL = "config.json", "model"


def write_manifest(checkpoint: Path, workdir: Path) -> None:
    """Writes the manifest of a checkpoint whose files are complete."""
    about: dict[str, Any] = {_DESCRIBED: (workdir / manifest.FILE).exists()}
    of_frozen = workdir / CHECKPOINTS / FROZEN / manifest.FILE
    if of_frozen.exists():
        about[_FROZEN] = hashlib.sha256(of_frozen.read_bytes()).hexdigest()
    manifest.write(checkpoint, manifest.entries(checkpoint), about=about)


def problems(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, a sentence for each file. Empty if it is intact.

    Reads all of its files, and those of the frozen parameters that belong to it. Logs a warning for
    a checkpoint of an earlier version, which has no manifest.
    """
    try:
        written = _manifest(checkpoint)
    except manifest.Damaged as error:
        return [str(error).removeprefix(f"{checkpoint}/")]
    if written is None:
        log.warning(
            "%s: not verified, because an earlier version wrote it without a manifest", checkpoint
        )
        return []
    wrong = manifest.problems(checkpoint, written)
    if written.about.get(_FROZEN):
        wrong += _problems_of_frozen(checkpoint.with_name(FROZEN), written.about[_FROZEN])
    return wrong


def has_frozen(checkpoint: Path) -> bool:
    """Whether a checkpoint belongs to frozen parameters."""
    written = manifest.read(checkpoint)
    return written is not None and bool(written.about.get(_FROZEN))


def _problems_of_frozen(directory: Path, digest: str) -> list[str]:
    """What is wrong with frozen parameters, whose manifest must have this digest."""
    path = directory / manifest.FILE
    try:
        written = manifest.read(directory)
        if written is None:
            return [f"{path}: missing"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return [f"{path}: not the frozen parameters that the checkpoint was trained with"]
    except manifest.Damaged as error:
        return [str(error)]
    return [f"{directory}/{problem}" for problem in manifest.problems(directory, written)]


class Newest(NamedTuple):
    """The newest checkpoint that is not damaged."""

    step: int | None
    skipped: Mapping[int, str]
    """The problems of newer checkpoints by step."""


def newest_intact(workdir: str | Path, except_for: int | None = None) -> Newest:
    """The newest intact checkpoint of a run.

    except_for: a step to leave out. Reads all files of each checkpoint, from the newest on.
    """
    skipped: dict[int, str] = {}
    for step in reversed(saved_steps(workdir)):
        path = Path(workdir) / CHECKPOINTS / str(step)
        if step == except_for:
            continue
        wrong = problems(path)
        if not wrong:
            return Newest(step, skipped)
        skipped[step] = f"{path} is damaged: {manifest.listed(wrong)}"
    return Newest(None, skipped)


def check_file(checkpoint: Path, name: str) -> None:
    """Raises Damaged if a file of a checkpoint is not what it was, or the manifest is damaged."""
    if _manifest(checkpoint) is not None:
        manifest.check_file(checkpoint, name)


def problems_of_description(
    workdir: Path, checkpoint: Path | None = None, *, model_only: bool = False
) -> list[str]:
    """What is wrong with `config.json` and the files in `model/`, a sentence for each file.

    checkpoint: an intact checkpoint of the run, which says whether the run has a manifest.
    model_only: only the files in `model/`.
    """
    try:
        written = manifest.read(workdir)
        of_checkpoint = None if checkpoint is None else manifest.read(checkpoint)
    except manifest.Damaged as error:
        return [str(error).removeprefix(f"{workdir}/")]
    if written is None:
        if of_checkpoint is not None and of_checkpoint.about.get(_DESCRIBED):
            return [f"{manifest.FILE}: missing"]
        return []
    files = {
        name: entry for name, entry in written.files.items() if not model_only or name != _CONFIG
    }
    return manifest.problems(workdir, written._replace(files=files))


def describe(workdir: Path, config: str) -> None:
    """Writes the manifest of a run's description, before `config.json` gets this content.

    Until then its present content is valid, too.
    """
    file, model = workdir / _CONFIG, workdir / _MODEL
    names = [path.relative_to(workdir).as_posix() for path in model.rglob("*") if path.is_file()]
    files = {_CONFIG: manifest.entry_of(config.encode()), **manifest.entries(workdir, names)}
    also = {_CONFIG: manifest.entry_of(file.read_bytes())} if file.exists() else {}
    manifest.write(workdir, files, also=also)


def _manifest(checkpoint: Path) -> manifest.Manifest | None:
    """The manifest of a checkpoint. None for a checkpoint of an earlier version.

    Raises Damaged if it is missing or damaged.
    """
    written = manifest.read(checkpoint)
    if written is None and _must_have_manifest(checkpoint):
        raise manifest.Damaged(f"{checkpoint / manifest.FILE}: missing")
    return written


def _must_have_manifest(checkpoint: Path) -> bool:
    path = checkpoint / _METADATA
    try:
        metadata = json.loads(path.read_bytes())
        return bool(metadata.get("custom_metadata", {}))
    except FileNotFoundError:
        raise manifest.Damaged(f"{path}: missing, and so is {manifest.FILE}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise manifest.Damaged(f"{path}: cannot be read ({error})") from error
