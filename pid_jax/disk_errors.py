"""Disk errors (full, read-only, no permission), also when wrapped by other libraries."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pid_jax.errors import UserError

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OF_THE_DISK = (*_OF_WRITING, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR)


@contextmanager
def in_one_sentence(path: Path, intact: Callable[[], str] = str) -> Iterator[None]:
    """Raises UserError if the block cannot write to `path`, for errors of any library.

    intact: returns a clause for the message about the state of the data.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = why_not_written(path, error)
        if reason is None:
            raise
        rest = intact()
        raise UserError(f"cannot write {path}: {reason}" + (rest and f"; {rest}")) from error


def why_not_written(path: Path, error: BaseException | None) -> str | None:
    """The system's error message for a disk error at or below `path`, or None for other errors.

    Searches causes and contexts, because Orbax, TensorStore, safetensors and tokenizers wrap the
    system's error.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            file = error.filename
            if error.errno in _OF_THE_DISK and (file is None or _is_below(file, path)):
                return os.strerror(error.errno)
        else:
            message = str(error)
            for code in _OF_THE_DISK if str(path) in message else _OF_WRITING:
                if os.strerror(code) in message:
                    return os.strerror(code)
        if isinstance(error, BaseExceptionGroup):
            reasons = (why_not_written(path, part) for part in error.exceptions)
            reason = next((reason for reason in reasons if reason is not None), None)
            if reason is not None:
                return reason
        error = error.__cause__ or error.__context__
    return None


def _is_below(file: object, path: Path) -> bool:
    if not isinstance(file, str | os.PathLike):
        return False
    return Path(file).absolute().is_relative_to(path.absolute())
