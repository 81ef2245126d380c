"""How the processes of a run find each other: flags, variables of the environment, or the cluster.

`JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or the
flags of the same names, describe the run. An indexed job of Kubernetes has its process id in
`JOB_COMPLETION_INDEX`. Without any of these, JAX's cluster detection describes a step of SLURM with
several tasks and a TPU slice with several hosts. `JAX_NUM_PROCESSES=1` excludes detection.
"""

import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from pid_jax.errors import UserError

TIMEOUT = 300
"""Seconds in which all processes must start."""
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS",
)
_ADDRESS, _COUNT, _ID = "coordinator_address", "num_processes", "process_id"


class Processes(NamedTuple):
    """The arguments of `jax.distributed.initialize`. None for those that JAX detects."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def described(
    flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Processes | None:
    """The run that this process is part of. None for a single process.

    flags: coordinator_address, num_processes and process_id, None if absent. They take precedence
    over the environment. Raises UserError for an incomplete description and for values that are out
    of range.
    """
    values = {name: _value(name, flags, environment) for name in (_ADDRESS, _COUNT, _ID)}
    if values[_ID] is None and values[_COUNT] is not None:
        values[_ID] = environment.get("JOB_COMPLETION_INDEX")
    if all(value is None for value in values.values()):
        return Processes() if _detected_processes(environment) > 1 else None
    count = _whole_number(_COUNT, values[_COUNT], at_least=1)
    if count == 1 and values[_ADDRESS] is None:
        return None
    missing = [name for name, value in values.items() if value is None]
    if missing:
        there = [name for name in values if name not in missing]
        raise UserError(
            f"{_listed(there)} {'is' if len(there) == 1 else 'are'} set, but not "
            f"{_listed(missing)}: set all three for a run of several processes, or none"
        )
    number = _whole_number(_ID, values[_ID], at_least=0)
    assert count is not None
    assert number is not None
    if number >= count:
        raise UserError(
            f"{_listed([_ID])} is {number}: it must be from 0 to {count - 1} for "
            f"{_listed([_COUNT])} {count}"
        )
    address = str(values[_ADDRESS])
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"{_listed([_ADDRESS])} is {address!r}: it must be host:port of process 0, for example "
            "10.0.0.1:1234"
        )
    return None if count == 1 else Processes(address, count, number)


def join(processes: Processes, timeout: int = TIMEOUT) -> None:
    """Connects this process with the others. Nothing may have used JAX's devices before.

    timeout: seconds in which all processes must start. If they do not, this process prints an error
    and exits with status 2. Raises UserError for other reasons.
    """
    import jax

    # Its handler of SIGTERM would replace that of the system: a process would not end before
    # training starts, and training has a handler of its own.
    jax.config.update("jax_enable_preemption_service", False)
    if processes.process_id == 0:
        _check_port(str(processes.coordinator_address))
    # After its own timeout, JAX aborts the process, with a stack trace.
    timer = threading.Timer(timeout, _give_up, [processes, timeout])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(*processes, initialization_timeout=timeout + 60)
        jax.devices()  # while all processes are at this line: it has a timeout, too
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(_why_not_connected(processes, timeout, reason)) from error
    finally:
        timer.cancel()


def _check_port(address: str) -> None:
    """Raises UserError if process 0 cannot wait at the port. JAX would crash."""
    port = int(address.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family, host = (socket.AF_INET6, "::") if dual else (socket.AF_INET, "")
    try:
        socket.create_server((host, port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        raise UserError(
            f"{_listed([_ADDRESS])} is {address}, but process 0 cannot wait there for the others "
            f"({os.strerror(error.errno or 0)}): use another port, in all processes"
        ) from error


def _give_up(processes: Processes, timeout: int) -> None:
    reason = "not all processes have started"
    address = processes.coordinator_address
    if address is not None and processes.process_id != 0:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            reason = error.strerror or str(error)
    print(f"error: {_why_not_connected(processes, timeout, reason)}", file=sys.stderr, flush=True)
    os._exit(2)


def _why_not_connected(processes: Processes, timeout: int, reason: str) -> str:
    if processes.coordinator_address is None:
        return (
            f"the processes that JAX detected cannot connect ({reason}). Start the command on all "
            "hosts, or set JAX_NUM_PROCESSES=1 for a single process"
        )
    address, count, number = processes
    if number == 0:
        return (
            f"process 0 of {count} cannot connect with the others at {address} within {timeout} s "
            f"({reason}): start all processes within that time, with another port if this one is "
            "in use"
        )
    return (
        f"process {number} of {count} cannot connect to process 0 at {address} within {timeout} s "
        f"({reason}): check that process 0 runs there and that this host reaches the port"
    )


def _value(name: str, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    if flags.get(name) is not None:
        return flags[name]
    return environment.get(f"JAX_{name.upper()}") or None


def _listed(names: list[str]) -> str:
    return ", ".join(f"JAX_{name.upper()} (--{name.replace('_', '-')})" for name in names)


def _whole_number(name: str, value: Any, *, at_least: int) -> int | None:
    if value is None:
        return None
    text = str(value)
    if not text.isdecimal() or int(text) < at_least:
        raise UserError(
            f"{_listed([name])} is {text!r}: it must be a whole number of at least {at_least}"
        )
    return int(text)


def _detected_processes(environment: Mapping[str, str]) -> int:
    """The number of processes that JAX's cluster detection would report, 1 without a cluster."""
    if all(name in environment for name in _SLURM):
        return int(environment["SLURM_STEP_NUM_TASKS"])
    if not _may_have_tpu(environment):
        return 1
    # JAX has no public name for these. A single host must not start a coordination service.
    from jax._src import clusters

    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if cluster.is_env_present():
            return int(cluster.get_process_count())
    return 1


def _may_have_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a host of TPUs where the processes of a slice have not been excluded."""
    from jax._src import cloud_tpu_init

    platforms = environment.get("JAX_PLATFORMS", "")
    return cloud_tpu_init.running_in_cloud_tpu_vm and (not platforms or "tpu" in platforms)
