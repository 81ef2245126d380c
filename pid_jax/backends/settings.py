"""The settings of each backend: layout of keys and values, transposed kernels, compiler options."""

import dataclasses
from collections.abc import Mapping

import jax

from pid_jax.backends.layouts import ATTENDED_LAST, Layout


@dataclasses.dataclass(frozen=True)
class BackendSettings:
    """The settings of one backend."""

    layout: Layout = ATTENDED_LAST
    """The layout of all keys and values: those of documents and those of the decoder's cache."""
    transposes: bool = False
    """Whether decoding also reads transposed kernels, see `matmul.matmul`."""
    compiler_options: Mapping[str, bool | int | str] = dataclasses.field(default_factory=dict)
    """XLA options for every program."""


BY_PLATFORM: dict[str, BackendSettings] = {
    "cpu": BackendSettings(
        transposes=True,
        compiler_options={
            # Without this option XLA copies the key/value cache in each decode step. With it,
            # decoding takes 0.91 of the time (T5-base, a document of 1,536 tokens, 4 prompts).
            # The option is off by default in jaxlib 0.10.
            "xla_cpu_copy_insertion_use_region_analysis": True,
        },
    ),
    "gpu": BackendSettings(),
    "tpu": BackendSettings(),
}


def backend_settings(platform: str | None = None) -> BackendSettings:
    """The settings of a platform, by default of `jax.default_backend()`.

    Tracing reads them. Therefore a program that is compiled for a platform other than
    `jax.default_backend()` has the layout of the latter.
    """
    return BY_PLATFORM.get(platform or jax.default_backend(), BackendSettings())


def compiler_options(platform: str | None = None) -> dict[str, bool | int | str]:
    """XLA options for programs of this platform. A jaxlib may not know all of them."""
    return dict(backend_settings(platform).compiler_options)
