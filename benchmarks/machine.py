"""Description of the machine, and its maximum rates of matrix products and memory traffic."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.limits import Rates

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "ctranslate2")


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Names, counts and versions. The version of a package is None if it is not installed."""
    devices = jax.devices()
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def commit() -> dict[str, Any]:
    """The repository's commit, and whether files differ from it. None outside a repository."""
    root = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain")
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": None if changes is None else changes != "",
    }


def measure(
    dtype: str, *, matrices: Sequence[int] = (), mebibytes: int | None = None
) -> dict[str, Any]:
    """FLOP/s of large matrix products and bytes/s of large reads, in several libraries.

    matrices: sizes of the square factors. mebibytes: size of the array to read, far larger than
    any cache. Each rate is the maximum over several trials. `rates_of` returns the maximum over
    libraries.
    """
    on_cpu = jax.default_backend() == "cpu"
    matrices = matrices or ((1024, 2048, 4096) if on_cpu else (8192, 16384))
    mebibytes = mebibytes or (1024 if on_cpu else 8192)
    libraries = {"jax": _in_jax(dtype), "torch": _in_torch(dtype), "numpy": _in_numpy(dtype)}
    flops, moved = {}, {}
    for name, trials in libraries.items():
        if trials is None:
            continue
        for size in matrices:
            square = trials.ones(size, size)
            seconds = _best(lambda: trials.product(square, square))  # noqa: B023
            flops[f"{name}, {size} × {size}"] = 2 * size**3 / seconds
        columns = 4096
        array = trials.ones(mebibytes * 2**20 // jnp.dtype(dtype).itemsize // columns, columns)
        vector = trials.ones(columns, 1)
        moved[f"{name}, sum"] = mebibytes * 2**20 / _best(lambda: trials.sum(array))  # noqa: B023
        seconds = _best(lambda: trials.product(array, vector))  # noqa: B023
        moved[f"{name}, matrix-vector product"] = mebibytes * 2**20 / seconds
    return {
        "dtype": dtype,
        "read_mebibytes": mebibytes,
        "flops_per_second": flops,
        "bytes_per_second": moved,
    }


def rates_of(measured: dict[str, Any]) -> Rates:
    """The maximum rates over all libraries."""
    return Rates(
        max(measured["flops_per_second"].values()), max(measured["bytes_per_second"].values())
    )


class _Trials(NamedTuple):
    """A library's operations. The last two return when they are complete."""

    ones: Callable[[int, int], Any]
    product: Callable[[Any, Any], Any]
    sum: Callable[[Any], Any]


def _in_jax(dtype: str) -> _Trials:
    # Disables TensorFloat-32 on a GPU.
    precision = "highest" if dtype == "float32" else None
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=precision))
    total = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    return _Trials(
        lambda rows, columns: jnp.ones((rows, columns), dtype),
        lambda x, y: product(x, y).block_until_ready(),
        lambda x: total(x).block_until_ready(),
    )


def _in_torch(dtype: str) -> _Trials | None:
    """torch's operations, or None if torch is missing or does not support JAX's device."""
    try:
        import torch
    except ImportError:
        return None
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
        return None
    torch.set_num_threads(cores())
    device = "cpu" if backend == "cpu" else "cuda"

    def finished(result: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return _Trials(
        lambda rows, columns: torch.ones(rows, columns, dtype=getattr(torch, dtype), device=device),
        lambda x, y: finished(x @ y),
        lambda x: finished(x.sum()),
    )


def _in_numpy(dtype: str) -> _Trials | None:
    """NumPy's operations, or None except for float32 on a CPU."""
    if jax.default_backend() != "cpu" or dtype != "float32":
        return None
    return _Trials(lambda rows, columns: np.ones((rows, columns), dtype), np.matmul, np.sum)


def _best(trial: Callable[[], Any], *, seconds: float = 1.5) -> float:
    """Seconds of the fastest trial within `seconds`, of at least three, after a warm-up."""
    trial()
    trials: list[float] = []
    while sum(trials) < seconds or len(trials) < 3:
        started = time.perf_counter()
        trial()
        trials.append(time.perf_counter() - started)
    return min(trials)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
