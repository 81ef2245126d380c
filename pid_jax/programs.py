"""Compiled programs: each compiled once for each shape, kept, timed and named in the log."""

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compilation:
    """One program that was compiled, or read from JAX's persistent cache."""

    program: str
    shape: str
    """The sizes it was compiled for, for people."""
    seconds: float


_ON_CPU = {"xla_cpu_copy_insertion_use_region_analysis": True}
"""Without it XLA copies the cache in each step before it writes to it: T5-base, 4 prompts of 1,536
tokens: 0.91 of the time with it. The compiler's default is False in jaxlib 0.10."""


def _compiled(lowered: Any) -> Any:
    if jax.default_backend() != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=_ON_CPU)
    except jax.errors.JaxRuntimeError:  # a jaxlib that no longer has the option
        return lowered.compile()


class Programs:
    """Programs made ahead of their first call, by name and by the shapes of their arguments.

    `compilations` is the table of what was compiled so far, in order.
    """

    def __init__(self) -> None:
        self.compilations: list[Compilation] = []
        self._compiled: dict[Hashable, Callable[..., Any]] = {}

    def of_another_device(self) -> "Programs":
        """Programs of their own, which stand in the same table."""
        others = Programs()
        others.compilations = self.compilations
        return others

    def get(
        self,
        program: str,
        jitted: Any,
        fixed: tuple[Any, ...],
        arguments: tuple[Any, ...],
        static: Mapping[str, Hashable],
        describe: Callable[[], str],
    ) -> Callable[..., Any]:
        """`jitted(*fixed, *arguments, **static)` as a function of all arguments not static.

        fixed: those whose shapes never change under this name: a model and its parameters.
        arguments: arrays, or `jax.ShapeDtypeStruct`s to compile without running.
        describe: called, for the log and the table, only if something is compiled.
        """
        key = self._key(program, arguments, static)
        if key not in self._compiled:
            started = time.perf_counter()
            self._compiled[key] = _compiled(jitted.lower(*fixed, *arguments, **static))
            compilation = Compilation(program, describe(), time.perf_counter() - started)
            self.compilations.append(compilation)
            log.info(
                "compiled the %s for %s in %.1f s (%d programs so far)",
                program,
                compilation.shape,
                compilation.seconds,
                len(self.compilations),
            )
        return self._compiled[key]

    @staticmethod
    def _key(program: str, arguments: tuple[Any, ...], static: Mapping[str, Hashable]) -> Hashable:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, jax.numpy.dtype(leaf.dtype)) for leaf in leaves)
        return program, tree, shapes, tuple(sorted(static.items()))

    def __str__(self) -> str:
        rows = [f"{one.seconds:7.1f} s  {one.program:<10} {one.shape}" for one in self.compilations]
        total = sum(one.seconds for one in self.compilations)
        return "\n".join([*rows, f"{total:7.1f} s  in all, {len(rows)} programs"])
