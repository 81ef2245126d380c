"""Compiled programs: each compiled once for each shape, kept while in use, timed and logged."""

import itertools
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax

from pid_jax.backends.choices import compiler_options

log = logging.getLogger(__name__)

MOST_KEPT = 64
"""Programs kept at once for one model and device; the least recently used makes way."""

MOST_IN_PROCESS = 192
"""Programs kept at once in a process on a CPU, for all models and devices. There each holds some
170 memory maps (three for each kernel), and Linux grants a process 65,530."""

_LOCK = threading.Lock()
_EVERYWHERE: "weakref.WeakSet[Programs]" = weakref.WeakSet()
_USES = itertools.count()


@dataclass(frozen=True)
class Compilation:
    """One program that was compiled, or read from JAX's persistent cache."""

    program: str
    shape: str
    """The sizes it was compiled for, for people."""
    seconds: float


_ON_CPU = compiler_options("cpu")


def _compiled(lowered: Any) -> Any:
    """Leaves out options that a jaxlib does not have."""
    if jax.default_backend() != "cpu":
        return lowered.compile()
    options = dict(_ON_CPU)
    while options:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            unknown = [name for name in options if name in str(error)]
            if not unknown:
                raise
            for name in unknown:
                del options[name]
                _ON_CPU.pop(name, None)  # other threads may have done so
    return lowered.compile()


class Program:
    """A function traced for certain shapes, and compiled by whoever needs it first."""

    def __init__(self, owner: "Programs", key: Hashable, name: str, label: Hashable) -> None:
        self.name = name
        self.label = label
        self.used = 0
        self._owner = owner
        self._key = key
        self._jitted: Any = None
        self._lowered: jax.stages.Lowered | None = None
        self._results: Future[Any] = Future()
        self._tracing_seconds = 0.0
        self._compiled: Future[tuple[jax.stages.Compiled, float]] = Future()

    @property
    def results(self) -> Any:
        """The shapes of what it returns, as `jax.ShapeDtypeStruct`s."""
        return self._results.result()

    @property
    def seconds(self) -> float | None:
        """What tracing and compiling took; None before."""
        if not self._compiled.done() or self._compiled.exception() is not None:
            return None
        return self._compiled.result()[1]

    def trace(self, jitted: Any, arguments: tuple[Any, ...], static: Mapping[str, Any]) -> None:
        """Once, by the thread that asked first: settings of JAX may be that thread's alone."""
        started = time.perf_counter()
        try:
            lowered = jitted.lower(*arguments, **static)
            results = lowered.out_info
        except BaseException as error:
            self._owner.drop(self._key, self)
            self._results.set_exception(error)
            raise
        self._jitted, self._lowered = jitted, lowered
        self._tracing_seconds = time.perf_counter() - started
        self._results.set_result(results)

    def compile(self) -> jax.stages.Compiled:
        """The compiled function; threads that ask meanwhile wait for the one that compiles."""
        self._results.result()
        with _LOCK:
            lowered, self._lowered = self._lowered, None
        if lowered is not None:
            started = time.perf_counter()
            try:
                compiled = _compiled(lowered)
                # Else JAX keeps each program for ever, dropped here or not.
                self._jitted.clear_cache()
                seconds = self._tracing_seconds + time.perf_counter() - started
                self._owner.tell(Compilation(self.name, str(self.label), seconds))
            except BaseException as error:
                self._owner.drop(self._key, self)
                self._compiled.set_exception(error)
                raise
            self._compiled.set_result((compiled, seconds))
        return self._compiled.result()[0]


def _make_room() -> None:
    """Drops the programs of any model that were used longest ago, while there are too many.

    On a CPU, where each holds memory maps of this process.
    """
    if jax.default_backend() != "cpu":
        return
    holding = [programs for programs in _EVERYWHERE if programs._kept]
    count = sum(len(programs._kept) for programs in holding)
    while count > MOST_IN_PROCESS:
        oldest = min((one for one in holding if one._kept), key=Programs._oldest)
        oldest._kept.popitem(last=False)
        count -= 1


class Programs:
    """Programs made ahead of their first call, by name and by the shapes of their arguments.

    `compilations` is the table of what was compiled so far, in order. At most `most_kept`
    programs are kept, those used last.
    """

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self.compilations: list[Compilation] = []
        self._most_kept = most_kept
        self._kept: OrderedDict[Hashable, Program] = OrderedDict()
        self._others: list[Programs] = []
        with _LOCK:
            _EVERYWHERE.add(self)

    def of_another_device(self) -> "Programs":
        """Programs of their own, which stand in the same table."""
        others = Programs(self._most_kept)
        others.compilations = self.compilations
        self._others.append(others)
        return others

    def __len__(self) -> int:
        """How many programs are kept at the moment, on all devices."""
        return len(self._kept) + sum(map(len, self._others))

    def seconds_by_label(self, program: str) -> dict[Hashable, float]:
        """The labels of the programs of this name that are kept, and what each took to compile."""
        with _LOCK:
            kept = [one for one in self._kept.values() if one.name == program]
        return {one.label: one.seconds for one in kept if one.seconds is not None}

    def get(
        self,
        program: str,
        jitted: Any,
        fixed: tuple[Any, ...],
        arguments: tuple[Any, ...],
        static: Mapping[str, Hashable],
        label: Hashable,
    ) -> Program:
        """`jitted(*fixed, *arguments, **static)` as a function of all arguments not static.

        Traced, for this thread or another to compile.

        fixed: those whose shapes never change under this name: a model and its parameters.
        arguments: arrays, or `jax.ShapeDtypeStruct`s to compile without running.
        label: what it is compiled for; as a string, for the log and the table.
        """
        key = self._key(program, arguments, static)
        with _LOCK:
            kept = self._kept.get(key)
            mine = kept is None
            if kept is None:
                kept = self._kept[key] = Program(self, key, program, label)
            kept.used = next(_USES)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
            _make_room()
        if mine:
            kept.trace(jitted, (*fixed, *arguments), static)
        return kept

    def drop(self, key: Hashable, program: Program) -> None:
        """Forgets a program: it is traced anew when it is asked for again."""
        with _LOCK:
            if self._kept.get(key) is program:
                del self._kept[key]

    def _oldest(self) -> int:
        return next(iter(self._kept.values())).used

    def tell(self, compilation: Compilation) -> None:
        """Adds to the table, and to the log."""
        self.compilations.append(compilation)
        log.info(
            "compiled the %s for %s in %.1f s (%d programs so far)",
            compilation.program,
            compilation.shape,
            compilation.seconds,
            len(self.compilations),
        )

    @staticmethod
    def _key(program: str, arguments: tuple[Any, ...], static: Mapping[str, Hashable]) -> Hashable:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, jax.numpy.dtype(leaf.dtype)) for leaf in leaves)
        return program, tree, shapes, tuple(sorted(static.items()))

    def __str__(self) -> str:
        rows = [f"{one.seconds:7.1f} s  {one.program:<10} {one.shape}" for one in self.compilations]
        total = sum(one.seconds for one in self.compilations)
        return "\n".join([*rows, f"{total:7.1f} s  in all, {len(rows)} programs"])
