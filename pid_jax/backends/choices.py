"""The table of what each backend takes: layouts, transposed kernels, options of the compiler."""

import dataclasses
from collections.abc import Mapping

import jax

from pid_jax.backends.layouts import ATTENDED_LAST, Layout


@dataclasses.dataclass(frozen=True)
class Choices:
    """What one backend takes."""

    layout: Layout = ATTENDED_LAST
    """Of keys and values, those of documents and those of the decoder's cache."""
    transposes: bool = False
    """Whether decoding reads transposed kernels too, see `products.multiply`."""
    compiler_options: Mapping[str, bool | int | str] = dataclasses.field(default_factory=dict)
    """XLA's, for every program."""


BY_PLATFORM: dict[str, Choices] = {
    "cpu": Choices(
        transposes=True,
        compiler_options={
            # Without it XLA copies the key/value cache in each decode step before it writes to
            # it: T5-base, 4 prompts of 1,536 tokens: 0.91 of the time with it. False by default
            # in jaxlib 0.10.
            "xla_cpu_copy_insertion_use_region_analysis": True,
        },
    ),
    "gpu": Choices(),
    "tpu": Choices(),
}


def chosen(platform: str | None = None) -> Choices:
    """The choices of a platform, by default of the one that JAX computes on.

    They are read while a program is traced. A program that is compiled for a platform other than
    `jax.default_backend()` has the layout of the latter.
    """
    return BY_PLATFORM.get(platform or jax.default_backend(), Choices())


def compiler_options(platform: str | None = None) -> dict[str, bool | int | str]:
    """XLA's options for programs of this platform. A jaxlib may lack some of them."""
    return dict(chosen(platform).compiler_options)
