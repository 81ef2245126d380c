"""What a disk that is full, or may not be written to, looks like from any library."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pid_jax.errors import UserError

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OF_THE_DISK = (*_OF_WRITING, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR)


@contextmanager
def in_one_sentence(place: Path, intact: Callable[[], str] = str) -> Iterator[None]:
    """Raises UserError where the block cannot write to `place`, whatever library says so and how.

    intact: what there is to say of what stands, when it comes to that.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = why_not_written(place, error)
        if reason is None:
            raise
        rest = intact()
        raise UserError(f"cannot write {place}: {reason}" + (rest and f"; {rest}")) from error


def why_not_written(place: Path, error: BaseException | None) -> str | None:
    """What the system said, if that is behind an error and not about other files than `place`'s.

    Orbax, TensorStore, safetensors and tokenizers wrap it in errors of their own.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            file = error.filename
            if error.errno in _OF_THE_DISK and (file is None or _is_below(file, place)):
                return os.strerror(error.errno)
        else:
            said = str(error)
            for code in _OF_THE_DISK if str(place) in said else _OF_WRITING:
                if os.strerror(code) in said:
                    return os.strerror(code)
        if isinstance(error, BaseExceptionGroup):
            parts = (why_not_written(place, part) for part in error.exceptions)
            found = next((part for part in parts if part is not None), None)
            if found is not None:
                return found
        error = error.__cause__ or error.__context__
    return None


def _is_below(file: object, place: Path) -> bool:
    if not isinstance(file, str | os.PathLike):
        return False
    return Path(file).absolute().is_relative_to(place.absolute())
