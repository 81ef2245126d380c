"""Compiled functions: one executable for each shape of the arguments, timed and logged."""

import functools
import itertools
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax

from pid_jax.backends.settings import (
    Placement,
    compiler_options,
    compiling_for,
    current_platform,
    options_of_program,
    placement_of,
)

log = logging.getLogger(__name__)

CAPACITY = 64
"""Executables in memory for one model and device. The least recently used is dropped first."""

PROCESS_CAPACITY = 192
"""Executables in memory for all models and devices of a process on a CPU. There each has some 170
memory maps (three for each kernel), and Linux grants a process 65,530."""

_LOCK = threading.Lock()
_ALL_PROGRAMS: "weakref.WeakSet[Programs]" = weakref.WeakSet()
_USES = itertools.count()


@dataclass(frozen=True)
class Compilation:
    """One program that was compiled, or read from JAX's persistent cache."""

    program: str
    shape: str
    """The sizes it was compiled for, for people."""
    seconds: float


_UNKNOWN_OPTIONS: set[str] = set()
"""Compiler options that this jaxlib does not have."""


def _compiled(
    lowered: jax.stages.Lowered, platform: str, program: str, options: Mapping[str, Any]
) -> jax.stages.Compiled:
    """Compiles with the options of a platform but those that a jaxlib does not have."""
    wanted = {**compiler_options(platform), **options_of_program(platform, program), **options}
    while True:
        known: dict[str, Any] = {
            name: value for name, value in wanted.items() if name not in _UNKNOWN_OPTIONS
        }
        try:
            return lowered.compile(compiler_options=known or None)
        except jax.errors.JaxRuntimeError as error:
            unknown = {name for name in known if name in str(error)}
            if not unknown:
                raise
            _UNKNOWN_OPTIONS.update(unknown)


class Executable:
    """A function traced for certain shapes, and compiled by the first thread that needs it."""

    def __init__(self, owner: "Programs", key: Hashable, name: str, label: Hashable) -> None:
        self.name = name
        self.label = label
        self.used = 0
        self._owner = owner
        self._key = key
        self._jitted: Any = None
        self._lowered: jax.stages.Lowered | None = None
        self._jaxpr: Any = None
        self._results: Future[Any] = Future()
        self._platform = ""
        self._tracing_seconds = 0.0
        self._compiled: Future[tuple[jax.stages.Compiled, float]] = Future()

    @property
    def results(self) -> Any:
        """The shapes of the results, as `jax.ShapeDtypeStruct`s."""
        return self._results.result()

    @property
    def jaxpr(self) -> Any:
        """The traced function as a `jax.core.ClosedJaxpr`. None after compilation."""
        self._results.result()
        return self._jaxpr

    @property
    def seconds(self) -> float | None:
        """Seconds of tracing and compiling. None before compilation."""
        if not self._compiled.done() or self._compiled.exception() is not None:
            return None
        return self._compiled.result()[1]

    def trace(
        self,
        jitted: Any,
        placement: Placement,
        arguments: tuple[Any, ...],
        static: Mapping[str, Any],
    ) -> None:
        """Traces the function once. JAX settings may be those of the calling thread alone."""
        started = time.perf_counter()
        self._platform = placement.platform or ""
        try:
            with compiling_for(*placement):
                traced = jitted.trace(*arguments, **static)
                lowered = traced.lower()
            results = lowered.out_info
        except BaseException as error:
            self._owner.drop(self._key, self)
            self._results.set_exception(error)
            raise
        self._jitted, self._lowered, self._jaxpr = jitted, lowered, traced.jaxpr
        self._tracing_seconds = time.perf_counter() - started
        self._results.set_result(results)

    def compile(self, options: Mapping[str, Any] = MappingProxyType({})) -> jax.stages.Compiled:
        """The compiled function. Other threads wait for the one that compiles.

        options: further XLA options of the thread that compiles.
        """
        self._results.result()
        with _LOCK:
            lowered, self._lowered, self._jaxpr = self._lowered, None, None
        if lowered is not None:
            started = time.perf_counter()
            try:
                compiled = _compiled(lowered, self._platform, self.name, options)
                # Otherwise JAX retains each program for ever, dropped here or not.
                self._jitted.clear_cache()
                seconds = self._tracing_seconds + time.perf_counter() - started
                self._owner.record(Compilation(self.name, str(self.label), seconds))
            except BaseException as error:
                self._owner.drop(self._key, self)
                self._compiled.set_exception(error)
                raise
            self._compiled.set_result((compiled, seconds))
        return self._compiled.result()[0]


class Programs:
    """The executables of one model on one device, and the table of all compilations so far.

    At most `capacity` executables stay in memory, those used last. `compilations` lists what was
    compiled, in order. Printed, it is a table with the seconds of each.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.compilations: list[Compilation] = []
        self._capacity = capacity
        self._executables: OrderedDict[Hashable, Executable] = OrderedDict()
        self._others: list[Programs] = []
        self._functions: dict[str, tuple[Any, ...]] = {}
        with _LOCK:
            _ALL_PROGRAMS.add(self)

    def for_another_device(self) -> "Programs":
        """Programs with their own executables and the same table."""
        others = Programs(self._capacity)
        others.compilations = self.compilations
        self._others.append(others)
        return others

    def of_device(self, index: int) -> "Programs":
        """The programs of a device, by its number: those of an earlier call, or new ones."""
        while len(self._others) <= index:
            self.for_another_device()
        return self._others[index]

    def claim(self, name: str, function: Any, static: tuple[Any, ...]) -> None:
        """Reserves a name. Raises ValueError if another function has it: executables are found by
        name and shapes."""
        known = self._functions.setdefault(name, (function, static))
        if known != (function, static):
            raise ValueError(f"{name!r} is the name of another function: {known[0]}")

    def __len__(self) -> int:
        """The number of executables in memory, on all devices."""
        return len(self._executables) + sum(map(len, self._others))

    def seconds_by_label(self, name: str) -> dict[Hashable, float]:
        """The labels of the executables of one function, with their seconds of compilation."""
        with _LOCK:
            of_name = [one for one in self._executables.values() if one.name == name]
        return {one.label: one.seconds for one in of_name if one.seconds is not None}

    def get(
        self,
        name: str,
        jitted: Any,
        placement: Placement,
        arguments: tuple[Any, ...],
        variable: tuple[Any, ...],
        static: Mapping[str, Hashable],
        label: Hashable,
    ) -> Executable:
        """The executable for the shapes of `variable`, traced with `arguments` if it is new.

        placement: the devices that it is compiled for.
        """
        key = self._key(name, variable, static)
        with _LOCK:
            executable = self._executables.get(key)
            is_new = executable is None
            if executable is None:
                executable = self._executables[key] = Executable(self, key, name, label)
            executable.used = next(_USES)
            self._executables.move_to_end(key)
            while len(self._executables) > self._capacity:
                self._executables.popitem(last=False)
            _limit_process()
        if is_new:
            executable.trace(jitted, placement, arguments, static)
        return executable

    def drop(self, key: Hashable, executable: Executable) -> None:
        """Forgets an executable. The next call traces it again."""
        with _LOCK:
            if self._executables.get(key) is executable:
                del self._executables[key]

    def record(self, compilation: Compilation) -> None:
        """Adds a compilation to the table and to the log."""
        self.compilations.append(compilation)
        log.info(
            "compiled the %s for %s in %.1f s (%d programs so far)",
            compilation.program,
            compilation.shape,
            compilation.seconds,
            len(self.compilations),
        )

    def _last_use_of_oldest(self) -> int:
        return next(iter(self._executables.values())).used

    @staticmethod
    def _key(name: str, arguments: tuple[Any, ...], static: Mapping[str, Hashable]) -> Hashable:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, jax.numpy.dtype(leaf.dtype)) for leaf in leaves)
        return name, tree, shapes, tuple(sorted(static.items()))

    def __str__(self) -> str:
        rows = [f"{one.seconds:7.1f} s  {one.program:<10} {one.shape}" for one in self.compilations]
        total = sum(one.seconds for one in self.compilations)
        return "\n".join([*rows, f"{total:7.1f} s  in all, {len(rows)} programs"])


def _limit_process() -> None:
    """Drops the least recently used executables of any model while a CPU process has too many."""
    if jax.default_backend() != "cpu":
        return
    nonempty = [programs for programs in _ALL_PROGRAMS if programs._executables]
    count = sum(len(programs._executables) for programs in nonempty)
    while count > PROCESS_CAPACITY:
        candidates = (programs for programs in nonempty if programs._executables)
        oldest = min(candidates, key=Programs._last_use_of_oldest)
        oldest._executables.popitem(last=False)
        count -= 1


class CompiledFunction:
    """A function with its static arguments and one executable for each shape of the others.

        encode = CompiledFunction(programs, "encode", prompt_in_decoder.encode, static=(model,))
        encode.warm_up(params, shape, shape, label="8 documents of 512 tokens")
        encoded = encode(params, documents, mask, label="8 documents of 512 tokens")

    The label says for people what a shape means, in the log and in the table of `programs`. Two
    functions of one `Programs` have different names.
    """

    def __init__(
        self,
        programs: Programs,
        name: str,
        function: Callable[..., Any],
        *,
        static: Sequence[Any] = (),
        constant_shapes: int = 0,
        static_argnames: Sequence[str] = (),
        **jit_options: Any,
    ) -> None:
        """static: the first positional arguments of the function, hashable.

        constant_shapes: how many of the arguments after them have the same shapes in every call,
        such as a model's parameters. static_argnames: keyword arguments that are part of the
        program. jit_options: further options of `jax.jit`.
        """
        self.name = name
        self.programs = programs
        self._static = tuple(static)
        programs.claim(name, function, self._static)
        self._constant_shapes = constant_shapes
        self._function = function
        self._jit_options = {
            "static_argnums": tuple(range(len(static))),
            "static_argnames": tuple(static_argnames),
            **jit_options,
        }
        self._jitted: dict[tuple[str | None, bool, Any], Any] = {}

    def __call__(self, *arguments: Any, label: Hashable, **static: Hashable) -> Any:
        """Runs the function, compiled for these shapes. Arguments are arrays on the device."""
        return self.compile(*arguments, label=label, **static)(*arguments)

    def compile(self, *shapes: Any, label: Hashable, **static: Hashable) -> jax.stages.Compiled:
        """The compiled function for these arrays or shapes; it takes all but static arguments."""
        return self.trace(*shapes, label=label, **static).compile()

    def trace(self, *arguments: Any, label: Hashable, **static: Hashable) -> Executable:
        """The executable for these arrays or `jax.ShapeDtypeStruct`s. Any thread may compile it."""
        placement = placement_of(*arguments)
        placement = placement._replace(platform=placement.platform or current_platform())
        return self.programs.get(
            self.name,
            self._jitted_for(placement),
            placement,
            (*self._static, *arguments),
            arguments[self._constant_shapes :],
            static,
            label,
        )

    def _jitted_for(self, placement: Placement) -> Any:
        key = placement.platform, placement.devices > 1, placement.mesh
        if key not in self._jitted:
            function = self._function
            if key != (jax.default_backend(), False, None):

                @functools.wraps(function)
                def function(*arguments: Any, **static: Any) -> Any:
                    # Another function: JAX would find the traces of the default backend
                    # or of a single device.
                    return self._function(*arguments, **static)

            self._jitted[key] = jax.jit(function, **self._jit_options)
        return self._jitted[key]

    def warm_up(self, *shapes: Any, label: Hashable, **static: Hashable) -> Any:
        """Compiles for these arrays or shapes. Returns the shapes and shardings of the results."""
        executable = self.trace(*shapes, label=label, **static)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            executable.results,
            executable.compile().output_shardings,
        )

    def seconds_by_label(self) -> dict[Hashable, float]:
        """The labels of the executables in memory, with their seconds of compilation."""
        return self.programs.seconds_by_label(self.name)
