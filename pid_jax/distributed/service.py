"""The processes of a run, as JAX's coordination service knows them.

Nothing here starts JAX's backend. A process that has not called `jax.distributed.initialize` is a
run of its own.
"""

from typing import Any

import jax
from jax._src import distributed as _of_jax

from pid_jax.errors import UserError


def count() -> int:
    """The number of processes of this run."""
    return _of_jax.global_state.num_processes if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    return _of_jax.global_state.process_id if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes the files of the run. True for a single process."""
    return index() == 0


def client() -> Any:
    """The client of the coordination service, which stores values by key. Needs several processes.

    JAX has no public name for it.
    """
    return _of_jax.global_state.client


def check_initialized() -> None:
    """Raises UserError if JAX has devices of other processes, but no coordination service."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(
            f"JAX has devices of {jax.process_count()} processes, which cannot agree on anything: "
            "call jax.distributed.initialize() before anything else that uses JAX"
        )


def name(process: int) -> str:
    """A process in a message."""
    return f"process {process} of {count()}"
