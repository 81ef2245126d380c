"""The executor: runs batches on all devices of this process, several at a time."""

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TypeVar

import jax
import jax.numpy as jnp

from pid_jax.inference.batch_decoder import BatchDecoder
from pid_jax.inference.batch_planning import PlannedBatch
from pid_jax.inference.decoding_batch import DecodingBatch
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import Programs

ResultT = TypeVar("ResultT")
Make = Callable[[PlannedBatch], DecodingBatch]
"""Makes the arrays of a planned batch, right before they go to a device."""


class Executor(Sequence[BatchDecoder]):
    """A `BatchDecoder` for each device of this process, with the parameters copied to it.

    Each is made when it is first used. There is only one, where the parameters are, if those are
    sharded over devices or on another than the first, or if JAX's configuration names a default
    device.
    """

    def __init__(self, model: EncoderDecoder, params: Params) -> None:
        self._model = model
        self._params = jax.tree.map(jnp.asarray, params)
        devices = jax.local_devices()
        used = jax.tree.leaves(self._params)[0].devices()
        # Threads would launch collectives in an order that may differ from device to device.
        one_at_a_time = jax.default_backend() == "cpu" or len(used) > 1
        self._per_device = 1 if one_at_a_time else 2
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        placed = used != {devices[0]} or default is not None
        self._devices = [None] if placed else devices
        """None: wherever the parameters are."""
        self._decoders: dict[int, BatchDecoder] = {}
        self._locks = [threading.Lock() for _ in self._devices]
        self.programs = Programs()
        """The table of all compilations."""

    def __len__(self) -> int:
        return len(self._devices)

    def __getitem__(self, index: int) -> BatchDecoder:  # type: ignore[override]  # no slices
        device = self._devices[index]
        with self._locks[index]:
            if index not in self._decoders:
                params = self._params if device is None else jax.device_put(self._params, device)
                programs = self.programs.for_another_device()
                self._decoders[index] = BatchDecoder(self._model, params, programs)
        return self._decoders[index]

    def run(
        self,
        function: Callable[[BatchDecoder, PlannedBatch], ResultT],
        batches: Sequence[PlannedBatch],
    ) -> Generator[tuple[PlannedBatch, ResultT, float], None, None]:
        """`function(decoder, batch)` for every batch, on whichever device is free.

        Yields each batch with its result and its seconds, divided by the number of workers: over
        all batches they add up to about the time that passed. The order is that of completion. An
        accelerator runs two batches at a time: the host prepares one while the other runs. A CPU
        runs one, and so do devices over which the parameters are sharded. The first error ends all
        as soon as the batches in progress have finished, and so does closing. With one worker,
        everything runs in the calling thread. Of the JAX settings of the calling thread, other
        threads have the precision of matrix products and the rank promotion.
        """
        workers = min(len(self) * self._per_device, len(batches))
        if workers <= 1:
            for batch in batches:
                started = time.perf_counter()
                result = function(self[0], batch)
                yield batch, result, time.perf_counter() - started
            return
        # Every device has a batch before any has two.
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for worker in range(workers):
            free.put(worker % len(self))
        settings = _settings_of_this_thread()

        def run_one(batch: PlannedBatch) -> tuple[ResultT, float]:
            device = free.get()
            started = time.perf_counter()
            try:
                with settings():
                    result = function(self[device], batch)
                return result, (time.perf_counter() - started) / workers
            finally:
                free.put(device)

        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        try:
            futures = {pool.submit(run_one, batch): batch for batch in batches}
            for future in as_completed(futures):
                result, seconds = future.result()
                yield futures.pop(future), result, seconds
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def compiling_ahead(self, batches: Sequence[PlannedBatch], make: Make) -> Iterator[None]:
        """Meanwhile other threads compile what decoding of these batches needs, per device."""
        devices = min(len(self), len(batches))
        count = Counter(batch.shape for batch in batches)
        with ExitStack() as stack:
            for i in range(devices):
                # A device can expect a batch of each shape that as many batches have as devices.
                own = {batches[i].shape: batches[i]} | {
                    batch.shape: batch for batch in batches if count[batch.shape] >= devices
                }
                stack.enter_context(_compiling_ahead(self[i], own.values(), devices, make))
            yield

    def warm_up(self, batches: Sequence[PlannedBatch], make: Make) -> None:
        """Compiles, on every device, what decoding of these batches may need."""
        made = [make(batch) for batch in {batch.shape: batch for batch in batches}.values()]
        settings = _settings_of_this_thread()

        def warm_up(decoder: BatchDecoder) -> None:
            with settings():
                for batch in made:
                    decoder.warm_up(batch)

        if len(self) == 1:
            warm_up(self[0])
            return
        with ThreadPoolExecutor(len(self)) as pool:
            list(pool.map(warm_up, self))


@contextmanager
def _compiling_ahead(
    decoder: BatchDecoder, batches: Collection[PlannedBatch], devices: int, make: Make
) -> Iterator[None]:
    """Traces in this thread, compiles in others. The first batch's programs come first."""
    batches = list(batches)
    first = make(batches[0])
    compiled = {*decoder.shapes(first.options)}
    missing = [batch for batch in batches if batch.shape not in compiled]
    threads = max(min((os.cpu_count() or 1) // (2 * devices), 1 + len(missing)), 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="compile")  # starts none by itself
    try:
        rest = (make(batch) for batch in missing if batch.shape != first.shape)
        for batch in chain([first] * (first.shape not in compiled), rest):
            for executable in decoder.trace(batch):
                pool.submit(executable.compile)
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _settings_of_this_thread() -> Callable[[], ExitStack]:
    """JAX settings that a caller may have changed for its own thread, for another thread."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    promotion = jax.config.jax_numpy_rank_promotion  # type: ignore[attr-defined]

    def entered() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(jax.default_matmul_precision(precision))
        stack.enter_context(jax.numpy_rank_promotion(promotion))
        return stack

    return entered
