"""The accelerators that programs are compiled for, and how their compilers are reached.

Importing this module does not import JAX: `prepare_environment` must run before that.
"""

import contextlib
import importlib
import importlib.util
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pid_jax.chips import CHIPS, H100_TARGET_CONFIG, Chip
from pid_jax.errors import UserError

_ONE_HOST = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2"}
"""The smallest topology of each TPU that its compiler accepts."""

_TRITON_FLAG = "--xla_gpu_enable_triton_gemm=false"
"""Without a card the compiler cannot choose tiles for Triton's products. It then calls cuBLAS."""

DEFAULT_TILES: Mapping[str, bool | int] = MappingProxyType(
    {"xla_gpu_enable_triton_gemm": True, "xla_gpu_autotune_level": 0}
)
"""XLA options for Triton's products with tiles that no card has chosen. Products with kernels in 8
bits need them: cuBLAS has none with operands of two dtypes, so that every kernel would be converted
in memory first."""

GATHERS_ON_TENSOR_CORE: Mapping[str, bool | int] = MappingProxyType(
    {"xla_tpu_offload_gather_to_sparsecore": False}
)
"""Without this option a program for a chip with `Chip.gathers_on_sparse_core` has instructions that
jaxlib cannot print: libtpu is newer."""

_CUDA_PLUGINS = ("xla_cuda12", "xla_cuda13")

_ENVIRONMENT = {
    # A process without these variables asks the cloud's metadata server, and waits.
    "TPU_SKIP_MDS_QUERY": "1",
    # Several processes may compile at a time: none of them uses a chip.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Otherwise the compiler looks for chips and logs that there are none.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Target:
    """An accelerator and how many of it: `v5e`, `v5e:2x4`, `h100:8`."""

    kind: str
    """A key of `chips.CHIPS`."""
    topology: tuple[int, ...] = ()
    """Chips along each axis. Empty for one chip."""

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def count(self) -> int:
        """The number of devices."""
        return math.prod(self.topology)

    def __str__(self) -> str:
        return self.kind + (":" + "x".join(map(str, self.topology)) if self.topology else "")


def parse(text: str) -> Target:
    """Reads the value of --target. Raises `UserError` for anything but KIND or KIND:TOPOLOGY."""
    kind, colon, topology = text.partition(":")
    if kind not in CHIPS:
        raise UserError(
            f"--target={text}: choose from {', '.join(CHIPS)}, with a topology after a colon for "
            "more than one chip: v5e:2x4, v5p:4x4x4, h100:8"
        )
    if not colon:
        return Target(kind)
    axes = 1 if kind == "h100" else _ONE_HOST[kind].count("x") + 1
    example = "8" if kind == "h100" else _ONE_HOST[kind]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) or topology.count("x") + 1 != axes:
        raise UserError(
            f"--target={text}: the topology of {kind} has {axes} "
            f"{'size' if axes == 1 else 'sizes'}, as in {kind}:{example}"
        )
    sizes = tuple(map(int, topology.split("x")))
    return Target(kind) if math.prod(sizes) == 1 else Target(kind, sizes)


def prepare_environment() -> None:
    """Sets the variables that JAX and the compilers read when they start.

    JAX itself runs on the CPU. A process whose JAX has initialised its devices ignores them.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the variable
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_enable_triton_gemm" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_TRITON_FLAG}".strip()


def missing_compiler(kind: str) -> str | None:
    """What to install for a kind of accelerator. None if its compiler is installed."""
    if CHIPS[kind].platform == "tpu":
        if importlib.util.find_spec("libtpu") is not None:
            return None
        package, install = "libtpu", "libtpu"
    else:
        if _cuda_plugin() is not None:
            return None
        package, install = "jax-cuda12-plugin", '"jax[cuda12]==VERSION"'
    version = _jax_version()
    return (
        f"the compiler for {kind} is missing: the package {package} is not installed. Run "
        f"`pip install {install.replace('VERSION', version)}`, or `make targets` in a checkout for "
        "an environment of its own (several gigabytes). It needs no accelerator"
    )


def devices(target: Target) -> Sequence[Any]:
    """The target's devices, for shardings of shapes. Nothing can run on them.

    Raises `UserError` if the compiler is missing or rejects the topology.
    """
    missing = missing_compiler(target.kind)
    if missing is not None:
        raise UserError(f"--target={target}: {missing}")
    import jax
    from jax.experimental import topologies

    try:
        if target.chip.platform == "gpu":
            with _cuda_plugin_loaded():
                described = topologies.get_topology_desc(
                    platform="cuda",
                    topology_name="",
                    target_config=H100_TARGET_CONFIG,
                    topology=f"1x1x{target.count}",
                )
        else:
            sizes = "x".join(map(str, target.topology)) or _ONE_HOST[target.kind]
            # One device for both cores of a chip, as JAX has it on TPU v4.
            options = {"chip_config_name": "megacore"} if target.kind == "v4" else {}
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{target.kind}:{sizes}", **options
            )
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--target={target}: the compiler rejects it: {str(error).splitlines()[0]}"
        ) from error
    return described.devices[: target.count]


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """The JAX settings for programs of a target: all optimisations, and no persistent cache.

    The cache has entries only for devices of this machine.
    """
    import jax

    settings = {"jax_enable_compilation_cache": False, "jax_disable_most_optimizations": False}
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _jax_version() -> str:
    from importlib.metadata import version

    return version("jax")


def _cuda_plugin() -> str | None:
    if importlib.util.find_spec("jax_plugins") is None:
        return None
    names = (f"jax_plugins.{name}" for name in _CUDA_PLUGINS)
    return next((name for name in names if importlib.util.find_spec(name) is not None), None)


@contextlib.contextmanager
def _cuda_plugin_loaded() -> Iterator[None]:
    """Loads the CUDA compiler, which JAX_PLATFORMS=cpu leaves out.

    JAX may load it a second time, and logs the failure of that with a traceback.
    """
    import jax

    name = _cuda_plugin()
    assert name is not None
    log = logging.getLogger("jax._src.xla_bridge")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        try:
            importlib.import_module(name).initialize()
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise
        yield
    finally:
        log.setLevel(level)
