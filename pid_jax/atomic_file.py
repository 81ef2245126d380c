"""Files that are either complete or not there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pid_jax.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` only if the block ends without an error.

    Otherwise whatever was at `path` stays as it was. Missing parent directories are made.
    Raises UserError where nothing can be written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place: a rename is atomic only within one file system.
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield folder / path.name
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
