"""The pool of workers; what it is for is tested in tests/test_devices.py."""

import threading
import time
from typing import Any

import jax
import pytest

from pid_jax.data.batching import BatchShape
from pid_jax.inference.batch_planning import PlannedBatch
from pid_jax.inference.executor import Executor
from pid_jax.inference.model import PidModel

BATCHES = [PlannedBatch((i,), BatchShape(1, 1, 1, 1, 1)) for i in range(5)]


@pytest.fixture
def executor(tiny_model: PidModel, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """Two workers, as an accelerator has them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return Executor(tiny_model.model, tiny_model.params)


def test_two_batches_run_at_a_time_and_come_as_they_complete(executor: Executor) -> None:
    one_came = threading.Event()

    def slow_first(_: Any, batch: PlannedBatch) -> int:
        if batch is BATCHES[0]:
            assert one_came.wait(20), "the other batches wait for the first"
        return batch.examples[0]

    completed = []
    for one in executor.run(slow_first, BATCHES):
        completed.append(one)
        one_came.set()
    assert sorted(result for _, result, _ in completed) == [0, 1, 2, 3, 4]
    assert all(batch.examples == (result,) for batch, result, _ in completed)
    assert completed[0][1] != 0


def test_the_seconds_of_all_batches_are_those_that_passed(executor: Executor) -> None:
    started = time.perf_counter()
    seconds = [seconds for *_, seconds in executor.run(lambda *_: time.sleep(0.02), BATCHES)]
    assert sum(seconds) == pytest.approx(time.perf_counter() - started, abs=0.04)
    assert min(seconds) >= 0


def test_one_worker_is_the_calling_thread(tiny_model: PidModel) -> None:
    executor = Executor(tiny_model.model, tiny_model.params)
    threads = {result for _, result, _ in executor.run(lambda *_: threading.get_ident(), BATCHES)}
    assert threads == {threading.get_ident()}
    assert list(executor.run(lambda *_: None, [])) == []


@pytest.mark.parametrize(
    ("name", "entered", "value"),
    [
        ("jax_default_matmul_precision", jax.default_matmul_precision, "bfloat16"),
        ("jax_enable_x64", jax.enable_x64, True),
        ("jax_debug_nans", jax.debug_nans, True),
        ("jax_numpy_dtype_promotion", jax.numpy_dtype_promotion, "strict"),
        ("jax_transfer_guard_host_to_device", jax.transfer_guard, "disallow"),
    ],
)
def test_other_threads_have_the_callers_settings(
    executor: Executor, name: str, entered: Any, value: Any
) -> None:
    with entered(value):
        runs = list(executor.run(lambda *_: getattr(jax.config, name), BATCHES))
    assert {read for _, read, _ in runs} == {value}


def test_the_last_batches_are_left_for_the_device_that_is_free_first(
    tiny_model: PidModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices and three batches: none waits for the long one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    executor = Executor(tiny_model.model, tiny_model.params)
    executor._devices = [None, None]
    monkeypatch.setattr(Executor, "__getitem__", lambda self, index: index)
    ended = threading.Event()

    def first_is_long(device: Any, batch: PlannedBatch) -> int:
        if batch is BATCHES[0]:
            assert ended.wait(20), "the last batch waits for the first"
        if batch is BATCHES[2]:
            ended.set()
        return device

    devices = {
        batch.examples[0]: device for batch, device, _ in executor.run(first_is_long, BATCHES[:3])
    }
    assert devices == {0: 0, 1: 1, 2: 1}


def test_sharded_parameters_are_used_by_one_thread(
    tiny_model: PidModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads would launch collectives in different orders on different devices."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    executor = Executor(tiny_model.model, tiny_model.params)
    assert executor._per_device == 2

    class Sharded:
        def devices(self) -> set[int]:
            return {0, 1}

    monkeypatch.setattr(jax.tree, "leaves", lambda tree: [Sharded()])
    executor = Executor(tiny_model.model, tiny_model.params)
    assert (len(executor), executor._per_device) == (1, 1)


@pytest.mark.parametrize("ended_by", ["error", "closing"])
def test_an_error_or_closing_ends_all(executor: Executor, ended_by: str) -> None:
    before, started = threading.active_count(), []

    def failing(_: Any, batch: PlannedBatch) -> None:
        started.append(batch)
        if ended_by == "error":
            raise KeyError("broken")
        time.sleep(0.01)

    many = BATCHES * 100
    results = executor.run(failing, many)
    if ended_by == "error":
        with pytest.raises(KeyError, match="broken"):
            list(results)
    else:
        next(results)
        results.close()
    assert threading.active_count() == before
    assert len(started) < len(many)
