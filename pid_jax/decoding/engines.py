"""An engine for each device, so that batches are decoded on all of them at once."""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import jax.numpy as jnp

from pid_jax.decoding.engine import Engine
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import Programs

ItemT = TypeVar("ItemT")


class Engines(Sequence[Engine]):
    """One engine for each of this process's devices, with the parameters copied to it.

    Copied when the engine is first asked for. There is but one engine, where the parameters are,
    if those are split over devices or on another than the first, or if JAX's configuration names
    a default device.
    """

    def __init__(self, model: EncoderDecoder, params: Params) -> None:
        self._model = model
        self._params = jax.tree.map(jnp.asarray, params)
        devices = jax.local_devices()
        held_by = jax.tree.leaves(self._params)[0].devices()
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        placed = held_by != {devices[0]} or default is not None
        self._devices = [None] if placed else devices
        """None: wherever the parameters are."""
        self._made: dict[int, Engine] = {}
        self.programs = Programs()
        """The table of what all of them compiled."""

    def __len__(self) -> int:
        return len(self._devices)

    def __getitem__(self, index: int) -> Engine:  # type: ignore[override]  # no slices
        device = self._devices[index]
        if index not in self._made:
            params = self._params if device is None else jax.device_put(self._params, device)
            self._made[index] = Engine(self._model, params, self.programs.of_another_device())
        return self._made[index]


def together(iterators: Sequence[Iterator[ItemT]]) -> Generator[ItemT, None, None]:
    """What the iterators yield, in the order in which it comes; a single one is just iterated.

    Of several, each runs in a thread of its own, so that programs are compiled side by side and
    no device waits for another's results. (What the caller set for its own thread, by `with
    jax.default_matmul_precision(...)` say, does not reach them.) The first error of one ends all;
    so does closing.
    """
    if len(iterators) == 1:
        yield from iterators[0]
        return
    found: queue.SimpleQueue[tuple[list[ItemT], BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()

    def run(iterator: Iterator[ItemT]) -> None:
        error = None
        try:
            for item in iterator:
                found.put(([item], None))
                if stopped.is_set():
                    break
        except BaseException as raised:  # it is raised again, by the thread that waits
            error = raised
        found.put(([], error))

    with ThreadPoolExecutor(max(len(iterators), 1)) as pool:
        try:
            for iterator in iterators:
                pool.submit(run, iterator)
            running = len(iterators)
            while running:
                items, error = found.get()
                if error is not None:
                    raise error
                running -= not items
                yield from items
        finally:
            stopped.set()
