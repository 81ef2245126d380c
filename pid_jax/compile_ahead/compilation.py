"""Compiles a request, and collects what the table and the JSON say of it."""

import gc
from dataclasses import dataclass
from pathlib import Path

import jax

from pid_jax import device_memory, flops
from pid_jax.compile_ahead import estimate, targets
from pid_jax.compile_ahead.estimate import ProgramEstimate
from pid_jax.compile_ahead.programs import NAMES, ProgramRequest, TracedProgram, traced
from pid_jax.errors import UserError


@dataclass(frozen=True)
class Compiled:
    """A request and what the compiler made of it."""

    request: ProgramRequest
    estimate: ProgramEstimate | None
    """None where the compiler refused the program because it does not fit the memory."""
    parameter_bytes: int
    """On each device, as are those of the optimizer."""
    optimizer_bytes: int
    flops: int
    """Over all devices."""
    devices: int
    needed_bytes: int = 0
    """On each device, where the compiler refused the program."""
    available_bytes: int = 0


def compile_request(request: ProgramRequest, dump: Path | None = None) -> Compiled:
    """Compiles the programs of a request for its target.

    dump: a directory for the text of each program. Raises `UserError` for a request that cannot be
    compiled. The time is that of the compiler: seconds to minutes.
    """
    estimates = []
    counted = 0
    latest: TracedProgram | None = None
    devices = max(request.target.count, 1)
    options = dict(targets.DEFAULT_TILES) if request.has_mixed_products else {}
    if request.target.chip.gathers_on_sparse_core:
        options |= targets.GATHERS_ON_TENSOR_CORE
    with targets.compiling():
        try:
            for latest in traced(request):
                executable = latest.executable
                program_flops = flops.count(executable.jaxpr)
                counted += program_flops
                program = executable.compile(options)
                read = estimate.of_compiled(
                    program,
                    name=executable.name,
                    flops=program_flops,
                    decodes=request.program == "decode",
                    chip=request.target.chip,
                )
                estimates.append(read)
                if dump is not None and not read.unreadable:
                    _write(dump, request, executable.name, program.as_text() or "")
                del program
                gc.collect()
        except jax.errors.JaxRuntimeError as error:
            refused = device_memory.out_of_memory(str(error))
            if refused is None or latest is None:
                raise UserError(
                    f"the compiler for {request.target} fails: {str(error).splitlines()[0]}"
                ) from error
            return Compiled(
                request,
                None,
                latest.parameter_bytes,
                latest.optimizer_bytes,
                counted,
                devices,
                *refused,
            )
    assert latest is not None
    assert len(estimates) == len(NAMES[request.program])
    return Compiled(
        request,
        estimate.merged(estimates),
        latest.parameter_bytes,
        latest.optimizer_bytes,
        counted,
        devices,
    )


def _write(directory: Path, request: ProgramRequest, name: str, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    target = str(request.target).replace(":", "-")
    (directory / f"{target}-{name.replace(' ', '_')}.txt").write_text(text, encoding="utf-8")
