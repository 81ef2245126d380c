"""Compilation for accelerators, in tests with the mark `targets`.

`program_estimate` compiles one of the product's programs, `function_estimate` any function. Both
return `pid_jax.compile_ahead.estimate.ProgramEstimate`:

    estimate = program_estimate("h100", "decode", TINY, BatchShape(8, 512, 30, 9, 16))
    estimate.work.kernels, estimate.work.cycles, estimate.memory.temporaries
    estimate.parts["self-attention"].cycles
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from pid_jax import flops, models
from pid_jax.backends.settings import compiling_for
from pid_jax.compile_ahead import estimate, targets
from pid_jax.compile_ahead.compilation import Compiled, compile_request
from pid_jax.compile_ahead.estimate import ProgramEstimate
from pid_jax.compile_ahead.programs import TRAINING, ProgramRequest
from pid_jax.data.batching import BatchShape
from tests.helpers.quick_compilation import users_environment

SMALL = {
    "model_type": "t5",
    "vocab_size": 1024,
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 512,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
"""Compiles within seconds. Its sizes are multiples of a TPU's tiles."""

DIALOGUES = BatchShape(8, 512, 30, 9, 16)
"""A batch of dialogue states: 8 documents with 30 prompts each."""


def skip_without_compiler(target: str) -> None:
    """Skips a test where the compiler of a target is not installed."""
    missing = targets.missing_compiler(targets.parse(target).kind)
    if missing is not None:
        pytest.skip(missing)
    # The compilers for TPU end the process at a flag that they do not know.
    os.environ["XLA_FLAGS"] = users_environment()["XLA_FLAGS"]
    targets.prepare_environment()


def compiled_request(
    target: str,
    program: str,
    config: Mapping[str, Any] = SMALL,
    shape: BatchShape = DIALOGUES,
    *,
    method: str = "pid",
    mesh: Mapping[str, int] | None = None,
    training: Any = None,
    dtype: str = "bfloat16",
    dump: Path | None = None,
) -> Compiled:
    """One of the product's programs, compiled. config: the keys of a `config.json`.

    training: a training config, the defaults for None. dump: a directory for the programs' text.
    """
    skip_without_compiler(target)
    if program in TRAINING and training is None:
        from pid_jax.training import config as configuration

        training = configuration.default()
    request = ProgramRequest(
        target=targets.parse(target),
        program=program,
        config=models.config_from_hf(config),
        shape=shape,
        method=method,
        dtype=dtype,
        mesh=mesh or {},
        training=training,
    )
    return compile_request(request, dump)


def program_text(*arguments: Any, dump: Path, **options: Any) -> str:
    """The text of the programs of `compiled_request`. dump: a directory of this call."""
    compiled_request(*arguments, dump=dump, **options)
    return "\n".join(file.read_text() for file in sorted(dump.iterdir()))


def array_shapes(text: str) -> set[tuple[int, ...]]:
    """The shapes of all arrays in the text of a program."""
    sizes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)
    return {tuple(map(int, one.split(","))) for one in sizes}


def kernel_count(text: str, name: str) -> int:
    """The calls of library functions and Pallas kernels of this name (a regular expression)."""
    return len(re.findall(f'custom_call_target="[^"]*{name}', text))


def program_estimate(*arguments: Any, **options: Any) -> ProgramEstimate:
    """The estimate of `compiled_request`, for a program that fits."""
    compiled = compiled_request(*arguments, **options)
    assert compiled.estimate is not None
    return compiled.estimate


def compiled_function(
    target: str, function: Callable[..., Any], *arguments: Any, **jit_options: Any
) -> tuple[jax.stages.Compiled, int]:
    """A function compiled for one device of a target, and its FLOPs.

    arguments: trees of anything with a shape and a dtype. The function is traced with the settings
    of the target's backend.
    """
    skip_without_compiler(target)
    parsed = targets.parse(target)
    where = SingleDeviceSharding(targets.devices(parsed)[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), arguments
    )

    def traced_for_target(*arguments: Any) -> Any:
        # Another function: JAX would find the traces of the default backend.
        return function(*arguments)

    with compiling_for(parsed.chip.platform), targets.compiling():
        traced = jax.jit(traced_for_target, **jit_options).trace(*shapes)
        return traced.lower().compile(), flops.count(traced.jaxpr)


def function_estimate(
    target: str,
    function: Callable[..., Any],
    *arguments: Any,
    decodes: bool = False,
    **jit_options: Any,
) -> ProgramEstimate:
    """The estimate of a function. decodes: of one iteration of its main loop."""
    compiled, count = compiled_function(target, function, *arguments, **jit_options)
    chip = targets.parse(target).chip
    return estimate.of_compiled(compiled, name="function", flops=count, decodes=decodes, chip=chip)
