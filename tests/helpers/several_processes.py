"""Commands run by several processes on this machine, whose CPU has some devices in each."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers.quick_compilation import xla_flags

ROOT = Path(__file__).parents[2]
SECONDS = 240


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    output: str
    errors: str
    seconds: float
    """Since all were started."""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    count: int = 2,
    devices: int = 1,
    extra: Sequence[Sequence[str]] = (),
    **environment: str,
) -> Iterator[list[subprocess.Popen[str]]]:
    """`count` processes of a Python command. extra: further arguments of each process."""
    variables = os.environ | {
        "XLA_FLAGS": xla_flags(f"--xla_force_host_platform_device_count={devices}"),
        "JAX_PLATFORMS": "cpu",
        **environment,
    }
    if count > 1:
        variables["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
        variables["JAX_NUM_PROCESSES"] = str(count)
    processes = []
    try:
        for number in range(count):
            own = {"JAX_PROCESS_ID": str(number)} if count > 1 else {}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command, *(extra[number] if extra else ())],
                    cwd=ROOT,
                    env=variables | own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = SECONDS) -> list[Ended]:
    """Waits for all, in any order of their ends."""
    started_at = time.monotonic()
    left = {}
    while len(left) < len(processes) and time.monotonic() - started_at < seconds:
        for number, process in enumerate(processes):
            if number not in left and process.poll() is not None:
                left[number] = time.monotonic() - started_at
        time.sleep(0.02)
    assert len(left) == len(processes), [process.poll() for process in processes]
    return [
        Ended(process.returncode, *process.communicate(), left[number])
        for number, process in enumerate(processes)
    ]


def run(command: Sequence[str], **options: object) -> list[Ended]:
    """The ends of all processes of a command."""
    with started(command, **options) as processes:  # type: ignore[arg-type]
        return ended(processes)


def wait_until(condition: Callable[[], bool], processes: Sequence[subprocess.Popen[str]]) -> None:
    """Returns when the condition is true or a process has ended."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and all(one.poll() is None for one in processes):
        if condition():
            return
        time.sleep(0.002)
