"""The executor: runs batches on all devices of this process, several at a time."""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from pid_jax.decoding.decoding_options import DecodingOptions
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

    def __init__(
        self, model: EncoderDecoder, params: Params, programs: Programs | None = None
    ) -> None:
        """programs: of an earlier executor, whose parameters were in the same places."""
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
        self.programs = Programs() if programs is None else programs
        """The table of all compilations."""

    def __len__(self) -> int:
        return len(self._devices)

    def __getitem__(self, index: int) -> BatchDecoder:  # type: ignore[override]  # no slices
        device = self._devices[index]
        with self._locks[index]:
            if index not in self._decoders:
                params = self._params if device is None else jax.device_put(self._params, device)
                programs = self.programs.of_device(index)
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
        everything runs in the calling thread. Other threads have its JAX settings
        (`thread_settings`).
        """
        workers = min(len(self) * self._per_device, len(batches))
        if workers <= 1:
            for batch in batches:
                started = time.perf_counter()
                result = function(self[0], batch)
                yield batch, result, time.perf_counter() - started
            return
        settings = thread_settings()

        def run_one(device: int, batch: PlannedBatch) -> tuple[ResultT, float]:
            started = time.perf_counter()
            with settings():
                result = function(self[device], batch)
            return result, (time.perf_counter() - started) / workers

        waiting = deque(batches)
        running: dict[Future[tuple[ResultT, float]], tuple[int, PlannedBatch]] = {}
        busy: Counter[int] = Counter()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

        def start(device: int) -> None:
            """The next batch, unless the last ones are left for a device that is idle."""
            if waiting and (not busy[device] or len(waiting) >= len(self)):
                batch = waiting.popleft()
                busy[device] += 1
                running[pool.submit(run_one, device, batch)] = device, batch

        try:
            # Every device has a batch before any has two.
            for worker in range(workers):
                start(worker % len(self))
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    device, batch = running.pop(future)
                    busy[device] -= 1
                    result, seconds = future.result()
                    start(device)
                    yield batch, result, seconds
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def compiling_ahead(
        self, options: DecodingOptions, batches: Sequence[PlannedBatch], make: Make
    ) -> Iterator[None]:
        """Meanwhile other threads compile what decoding of these batches needs, per device.

        options: those of all batches. Programs are traced in the calling thread.
        """
        devices = min(len(self), len(batches))
        count = Counter(batch.shape for batch in batches)
        with ExitStack() as stack:
            for i in range(devices):
                compiled = {*self[i].shapes(options)}
                # A device can expect a batch of each shape that as many batches have as devices.
                # The programs of its first batch come first.
                expected = {batches[i].shape: batches[i]} | {
                    batch.shape: batch for batch in batches if count[batch.shape] >= devices
                }
                missing = [one for shape, one in expected.items() if shape not in compiled]
                if missing:
                    threads = max(min((os.cpu_count() or 1) // (2 * devices), len(missing)), 1)
                    pool = ThreadPoolExecutor(threads, thread_name_prefix="compile")
                    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
                    for batch in missing:
                        for executable in self[i].trace(make(batch)):
                            pool.submit(executable.compile)
            yield

    def warm_up(self, batches: Sequence[PlannedBatch], make: Make) -> None:
        """Compiles, on every device, what decoding of these batches may need."""
        made = [make(batch) for batch in {batch.shape: batch for batch in batches}.values()]
        settings = thread_settings()

        def warm_up(decoder: BatchDecoder) -> None:
            with settings():
                for batch in made:
                    decoder.warm_up(batch)

        if len(self) == 1:
            warm_up(self[0])
            return
        with ThreadPoolExecutor(len(self)) as pool:
            list(pool.map(warm_up, self))


_THREAD_SETTINGS: Mapping[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_enable_x64": jax.enable_x64,
    "jax_debug_nans": jax.debug_nans,
    "jax_debug_infs": jax.debug_infs,
    "jax_transfer_guard_host_to_device": jax.transfer_guard_host_to_device,
    "jax_transfer_guard_device_to_device": jax.transfer_guard_device_to_device,
    "jax_transfer_guard_device_to_host": jax.transfer_guard_device_to_host,
}
"""Settings of JAX that a caller may change for its own thread, and how to enter them."""


def thread_settings() -> Callable[[], ExitStack]:
    """The JAX settings of the calling thread, to be entered in another."""
    values = {name: getattr(jax.config, name) for name in _THREAD_SETTINGS}

    def entered() -> ExitStack:
        stack = ExitStack()
        for name, value in values.items():
            if value is not None:
                stack.enter_context(_THREAD_SETTINGS[name](value))
        return stack

    return entered
