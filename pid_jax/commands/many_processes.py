"""What train, eval and predict share to run as several processes."""

import argparse
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pid_jax.command_line import user_errors
from pid_jax.distributed import joining
from pid_jax.errors import UserError

EPILOG = """\
several processes: start the same command in each, with --coordinator-address, --num-processes and
--process-id, or with the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
Tasks of a SLURM step and hosts of a TPU slice need neither. docs/many_processes.md has examples.
"""
USAGE = "\n    [--coordinator-address=HOST:PORT --num-processes=N --process-id=I]"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that describe the processes."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--coordinator-address",
        metavar="HOST:PORT",
        help="address of process 0, which all reach (default: JAX_COORDINATOR_ADDRESS)",
    )
    group.add_argument(
        "--num-processes", metavar="N", help="number of processes (default: JAX_NUM_PROCESSES)"
    )
    group.add_argument(
        "--process-id",
        metavar="I",
        help="number of this process, from 0 (default: JAX_PROCESS_ID)",
    )
    group.add_argument(
        "--coordinator-timeout",
        metavar="SECONDS",
        type=int,
        default=joining.TIMEOUT,
        help="time in which all processes must start (default: %(default)s)",
    )


@contextmanager
def all_processes(options: argparse.Namespace) -> Iterator[None]:
    """`user_errors` for the work of a command, in each of its processes.

    Connects them first. An error, a signal or an exit of one process ends all, with its message and
    its status. A single process has `user_errors` only.
    """
    with user_errors():
        if options.coordinator_timeout < 1:
            raise UserError("--coordinator-timeout must be at least 1 second")
        processes = joining.described(vars(options))
        if processes is not None:
            joining.join(processes, options.coordinator_timeout)
    if processes is None:
        with user_errors():
            yield
        return

    import jax

    from pid_jax.distributed import exchange, failures

    failures.watch()
    previous = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        with user_errors(), _reported():
            yield
            exchange.wait_for_all()
    except BaseException as error:
        _print(error)
        failures.leave(_status(error))
    failures.stop_watching()
    signal.signal(signal.SIGTERM, previous)
    jax.distributed.shutdown()


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    """Ends a process that prepares its work, so that it can tell the others."""
    sys.exit(128 + number)


@contextmanager
def _reported() -> Iterator[None]:
    """Tells the other processes of an error, unless it is that of another process."""
    from pid_jax.distributed import failures

    try:
        yield
    except failures.OtherProcessFailed:
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            # It may be the consequence of another's end, as an error of a collective operation.
            failures.raise_failure(seconds=2.0)
            if _is_of_connection(error):
                reason = str(error).strip().partition("\n")[0]
                raise failures.OtherProcessFailed(
                    f"another process has died ({reason}). Run the same command again to continue",
                    1,
                ) from error
        failures.report(_message(error), _status(error, of_user=2))
        raise


def _print(error: BaseException) -> None:
    """Prints an error that nothing else prints in a process that does not end by Python's exit."""
    from pid_jax.distributed import failures

    if isinstance(error, failures.OtherProcessFailed):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print(str(error) or "stopped", file=sys.stderr)
    elif not isinstance(error, SystemExit):
        traceback.print_exception(error)


def _is_of_connection(error: Exception) -> bool:
    text = str(error)
    return any(name in text for name in ("Gloo", "Connection", "UNAVAILABLE", "NCCL"))


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        if isinstance(error.code, int) and error.code > 128:
            return f"it received {signal.Signals(error.code - 128).name}"
        return f"it ended with exit status {error.code}"
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _status(error: BaseException, of_user: int = 1) -> int:
    """The exit status for an error. of_user: that of a UserError."""
    from pid_jax.distributed import failures

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, UserError):
        return of_user
    return error.status if isinstance(error, failures.OtherProcessFailed) else 1
