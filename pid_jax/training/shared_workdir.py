"""The working directory of a run, which all of its processes share."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pid_jax import directory_lock
from pid_jax.distributed import exchange, service
from pid_jax.errors import UserError

_PROOF = ".processes-"


@contextmanager
def locked(workdir: Path, why: str) -> Iterator[None]:
    """Creates the directory. The first process locks it against other runs.

    Raises UserError with the message `why` if another run has the lock, and a UserError if a
    process has another directory of this name than the first one.
    """
    if service.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        with directory_lock.writing(workdir, why):
            _check_shared(workdir)
            yield
    else:
        _check_shared(workdir)
        yield


def _check_shared(workdir: Path) -> None:
    if service.count() == 1:
        return

    def write() -> str:
        for left_behind in workdir.glob(f"{_PROOF}*"):  # by a killed run
            left_behind.unlink(missing_ok=True)
        proof = workdir / f"{_PROOF}{secrets.token_hex(8)}"
        proof.touch()
        return proof.name

    proof = workdir / exchange.of_first(write)
    if not proof.exists():
        raise UserError(
            f"{workdir} is another directory for {service.name(service.index())} than for process "
            "0: --workdir must be on a file system that all hosts share"
        )
    exchange.wait_for_all()
    if service.is_first():
        proof.unlink()
