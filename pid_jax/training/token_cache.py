"""Tokenized data sets on disk, each made once and shared by the runs that read the same.

    CACHE/multiwoz21-train-0123456789abcdef/tokens/    see pid_jax.data.token_files

The name has a digest of everything that determines the tokens: the data, the task and its options,
the tokenizer and the limits. A directory appears once it is complete.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pid_jax import directory_lock
from pid_jax.atomic_file import new_directory
from pid_jax.data.token_files import DamagedTokens, StoredTokens
from pid_jax.disk_errors import in_one_sentence
from pid_jax.distributed import exchange, service
from pid_jax.errors import UserError

log = logging.getLogger(__name__)

_TOKENS = "tokens"


def opened(cache: Path, key: Mapping[str, Any], write: Callable[[Path], None]) -> StoredTokens:
    """The data set with this key, which the first process writes if the cache lacks it.

    key: JSON, with "task" and "split". write: fills an empty directory. A damaged data set is
    written again, with a warning. While another run writes it, this one waits. Raises UserError if
    writing fails, and where processes have another cache than the first one.
    """

    def written() -> Path:
        directory = directory_of(cache, key)
        _write_missing(directory, write)
        return directory

    directory = exchange.of_first(written)
    try:
        tokens = StoredTokens(directory)
    except DamagedTokens as error:
        if service.is_first() or directory.exists():
            raise
        raise UserError(
            f"{service.name(service.index())} cannot read {directory} ({error}), which process 0 "
            "has: config.data.cache must be on a file system that all hosts share"
        ) from error
    if service.is_first():
        log.info("tokens of %s %s: read from %s", key["task"], key["split"], directory)
    return tokens


def directory_of(cache: Path, key: Mapping[str, Any]) -> Path:
    """Where a data set with this key is."""
    text = json.dumps(key, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    name = "".join(letter if letter.isalnum() else "_" for letter in str(key["task"]))
    return cache / f"{name}-{key['split']}-{digest}" / _TOKENS


def _write_missing(directory: Path, write: Callable[[Path], None]) -> None:
    if _is_intact(directory, log.debug):
        return
    folder = directory.parent
    with in_one_sentence(folder, lambda: "no tokens were written"):
        folder.mkdir(parents=True, exist_ok=True)
        waits = "%s: another run tokenizes the same data: waiting for it"
        with directory_lock.waiting(folder, lambda: log.info(waits, folder)) as locked:
            if _is_intact(directory, log.warning):  # written meanwhile
                return
            if directory.exists():
                shutil.rmtree(directory)
            try:
                with new_directory(directory, locked=locked) as building:
                    write(building)
            except (OSError, UserError):
                # On a file system without locks, another run may have been faster.
                if not _is_intact(directory, log.warning):
                    raise


def _is_intact(directory: Path, report: Callable[..., None]) -> bool:
    if not directory.exists():
        return False
    try:
        StoredTokens(directory)
    except DamagedTokens as error:
        report("%s. It is written again", str(error).partition("): ")[0] + ")")
        return False
    return True
