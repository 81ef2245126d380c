"""Identity of a checkpoint: a digest of its content, independent of its path."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from pid_jax.checkpoints import contents, huggingface, orbax, peft
from pid_jax.checkpoints.contents import CHECKPOINTS, FROZEN
from pid_jax.errors import UserError


def digest(checkpoint: str | Path) -> str:
    """A digest of the checkpoint files that `PidModel.from_pretrained` may read.

    Copying or moving the checkpoint preserves the digest. For a training run it covers the best
    checkpoint, or the one that the path names. For an adapter it covers its base model, too. Reads
    all files, at about a gigabyte in one to two seconds, and does not verify them. Raises UserError
    if there is no checkpoint.
    """
    root = Path(checkpoint).absolute()
    run = contents.run_of(root)
    if run is not None:
        shared = _within(run.workdir / orbax.MODEL) + _within(run.workdir / CHECKPOINTS / FROZEN)
        return orbax.read_checkpoint(
            run.workdir,
            run.step,
            lambda chosen: _digest(run.workdir, [*_within(chosen), *shared]),
            verify=False,  # loading does
        )
    root = huggingface.find(checkpoint)
    own = _digest(root, {file for kind in huggingface.FILES for file in root.glob(kind)})
    if not peft.is_adapter(root):
        return own
    return hashlib.blake2b((own + digest(peft.base_of(root))).encode(), digest_size=16).hexdigest()


def _within(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _digest(root: Path, files: Collection[Path]) -> str:
    result = hashlib.blake2b(digest_size=16)
    try:
        for file in sorted(files):
            result.update(f"{file.relative_to(root).as_posix()}\0".encode())
            with file.open("rb") as content:
                result.update(hashlib.file_digest(content, "blake2b").digest())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return result.hexdigest()
