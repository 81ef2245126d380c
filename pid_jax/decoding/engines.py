"""An engine for each device, so that batches are decoded on all of them at once."""

import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from pid_jax.data.batching import BatchShape
from pid_jax.decoding.engine import Engine, Job, Outputs
from pid_jax.decoding.planning import PlannedBatch
from pid_jax.decoding.report import DecodingReport
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import Programs

ItemT = TypeVar("ItemT")
Waiting = deque[tuple[PlannedBatch, int]]
"""Batches, each with the number of those of the same shape that come after it."""
JobOf = Callable[[PlannedBatch, int], Job]
"""The job of a batch, given how many more of its shape the same device may expect."""


class Decoded(NamedTuple):
    """What came of one batch."""

    batch: PlannedBatch
    outputs: Outputs
    report: DecodingReport
    seconds: float
    """Divided by the number of devices: over all batches they add up to the time that passed."""


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
        self._locks = [threading.Lock() for _ in self._devices]
        self.programs = Programs()
        """The table of what all of them compiled."""

    def __len__(self) -> int:
        return len(self._devices)

    def __getitem__(self, index: int) -> Engine:  # type: ignore[override]  # no slices
        device = self._devices[index]
        with self._locks[index]:
            if index not in self._made:
                params = self._params if device is None else jax.device_put(self._params, device)
                self._made[index] = Engine(self._model, params, self.programs.of_another_device())
        return self._made[index]

    def decode(
        self, batches: Sequence[PlannedBatch], job_of: JobOf
    ) -> Generator[Decoded, None, None]:
        """Decodes batches on all devices: each takes the next one when it is free.

        Close it to stop.
        """
        count = Counter(batch.shape for batch in batches)
        alike: Counter[BatchShape] = Counter()
        waiting: Waiting = deque()
        for batch in reversed(batches):
            waiting.appendleft((batch, alike[batch.shape]))
            alike[batch.shape] += 1
        used = min(len(self), len(waiting))
        # Every device has a batch before any has two, and may expect one of each such shape.
        first = [waiting.popleft() for _ in range(used)]
        common = {batch.shape: batch for batch in batches if count[batch.shape] >= used}
        shares = [
            _share(self[i], first[i], waiting, used, common.values(), job_of) for i in range(used)
        ]
        with closing(together(shares)) as decoded:
            for item in decoded:
                if item is not None:
                    yield item

    def warm_up(self, batches: Sequence[PlannedBatch], job_of: JobOf) -> None:
        """Compiles, on every device, what decoding these batches may need."""
        jobs = [job_of(batch, 0) for batch in {batch.shape: batch for batch in batches}.values()]

        def warmed_up(engine: Engine) -> Generator[None, None, None]:
            for job in jobs:
                engine.warm_up(job)
                yield

        for _ in together([warmed_up(engine) for engine in self]):
            pass


def _share(
    engine: Engine,
    first: tuple[PlannedBatch, int],
    waiting: Waiting,
    devices: int,
    expected: Collection[PlannedBatch],
    job_of: JobOf,
) -> Generator[Decoded | None, None, None]:
    """What one device decodes; an accelerator has its next batch at hand meanwhile.

    waiting: what further batches it takes from, as others do. expected: of each shape of which
    this device will have a batch, one. None: nothing yet, but a moment at which to stop.
    """
    at_once = 1 if jax.default_backend() == "cpu" else 2
    running: deque[tuple[PlannedBatch, Job, Iterator[Outputs | None]]] = deque()
    since = time.perf_counter()

    def start(batch: PlannedBatch, job: Job) -> None:
        decoding = engine.decode(job)
        next(decoding)  # sets the device to work
        running.append((batch, job, decoding))

    batch, alike = first
    job = job_of(batch, alike // devices)
    with _compiled_ahead(engine, job, expected, devices, job_of):
        start(batch, job)
        while running:
            # The last batches are left for whichever device is free first.
            while len(running) < at_once and len(waiting) >= devices:
                _start_next(waiting, devices, job_of, start)
            batch, job, decoding = running.popleft()
            outputs = next(decoding)
            if outputs is None:
                running.append((batch, job, decoding))
                yield None
                continue
            now = time.perf_counter()
            yield Decoded(batch, outputs, job.report, (now - since) / devices)
            since = now
            if not running:
                _start_next(waiting, devices, job_of, start)


def _start_next(
    waiting: Waiting, devices: int, job_of: JobOf, start: Callable[[PlannedBatch, Job], None]
) -> None:
    """Takes the next batch, unless other threads have taken all."""
    try:
        batch, alike = waiting.popleft()
    except IndexError:
        return
    start(batch, job_of(batch, alike // devices))


@contextmanager
def _compiled_ahead(
    engine: Engine, first: Job, expected: Collection[PlannedBatch], devices: int, job_of: JobOf
) -> Iterator[None]:
    """Other threads compile what these batches need, while the first are decoded."""
    known = {*engine.shapes(first.strategy, first.controls)}
    missing = [batch for batch in expected if batch.shape not in known | {first.shape}]
    threads = max(min((os.cpu_count() or 1) // (2 * devices), 1 + len(missing)), 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="compile")  # starts none by itself
    try:
        for job in chain([first] * (first.shape not in known), (job_of(b, 0) for b in missing)):
            for program in engine.trace(job):
                pool.submit(program.compile)
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def together(iterators: Sequence[Generator[ItemT, None, None]]) -> Generator[ItemT, None, None]:
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

    def run(iterator: Generator[ItemT, None, None]) -> None:
        error = None
        try:
            with closing(iterator):
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
