"""Programs are compiled once for each shape, and each compilation is told."""

import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import programs as programs_module
from pid_jax.backends.settings import Placement, current_platform
from pid_jax.programs import CompiledFunction, Programs


def add(x: jax.Array, y: jax.Array, *, negative: bool = False) -> jax.Array:
    return -(x + y) if negative else x + y


def sums(programs: Programs) -> CompiledFunction:
    return CompiledFunction(programs, "sum", add, constant_shapes=1, static_argnames=("negative",))


def sum_of(programs: Programs, x: np.ndarray, y: np.ndarray, negative: bool = False) -> jax.Array:
    label = f"{y.shape} numbers"
    total: jax.Array = sums(programs)(x, y, label=label, negative=negative)
    return total


def test_each_shape_type_and_static_value_compiles_once() -> None:
    programs = Programs()
    ones = np.ones(3, np.float32)
    for y, negative, compiled in [
        (ones, False, 1),
        (2 * ones, False, 1),
        (jnp.asarray(ones), False, 1),
        (ones.astype(np.int32), False, 2),
        (np.float32(1), False, 3),
        (ones, True, 4),
        (ones, False, 4),
    ]:
        expected = ones + y
        np.testing.assert_array_equal(
            sum_of(programs, ones, y, negative), -expected if negative else expected
        )
        assert len(programs.compilations) == compiled


def test_two_functions_of_one_name_are_refused() -> None:
    """They would run each other's executables."""
    programs = Programs()
    sums(programs)
    with pytest.raises(ValueError, match="'sum' is the name of another function"):
        CompiledFunction(programs, "sum", lambda x, y: x * y)


def test_a_shape_compiled_ahead_is_found_by_its_arrays() -> None:
    programs = Programs()
    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    assert sums(programs).warm_up(shape, shape, label="4", negative=False).shape == (4,)
    four = np.ones(4, np.float32)
    sum_of(programs, four, four)
    assert len(programs.compilations) == 1


def test_the_programs_used_last_stay() -> None:
    programs = Programs(capacity=2)
    one, two, three = (np.ones(size, np.float32) for size in (1, 2, 3))
    for y in (one, two, one, three, one):
        sum_of(programs, y, y)
        assert len(programs) <= 2
    assert len(programs.compilations) == 3
    assert set(programs.seconds_by_label("sum")) == {"(1,) numbers", "(3,) numbers"}
    sum_of(programs, two, two)
    assert len(programs.compilations) == 4


def test_threads_that_ask_for_one_program_compile_it_once() -> None:
    programs = Programs()
    ones = np.ones(7, np.float32)
    meeting = threading.Barrier(4, timeout=20)

    def ask() -> float:
        meeting.wait()
        return float(sum_of(programs, ones, ones)[0])

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask) for _ in range(4)]
        assert [answer.result() for answer in answers] == [2.0] * 4
    assert len(programs.compilations) == 1


def test_what_is_traced_is_compiled_by_whoever_needs_it_first() -> None:
    programs = Programs()
    ones = np.ones(7, np.float32)
    traced = sums(programs).trace(ones, ones, label="7", negative=False)
    assert traced.results.shape == (7,)
    assert programs.seconds_by_label("sum") == {}
    assert not programs.compilations
    assert sum_of(programs, ones, ones)[0] == 2
    assert traced.compile()(ones, ones)[0] == 2
    assert len(programs.compilations) == 1


def test_a_compilation_that_fails_elsewhere_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs()
    ones = np.ones(7, np.float32)
    traced = sums(programs).trace(ones, ones, label="7", negative=False)
    with monkeypatch.context() as patched:
        patched.setattr(programs_module, "_compiled", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            traced.compile()
    assert len(programs) == 0
    assert sum_of(programs, ones, ones)[0] == 2


def test_options_that_a_jaxlib_lacks_are_left_out_by_all_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = programs_module.compiler_options("cpu") | {"xla_cpu_of_another_jaxlib": True}
    monkeypatch.setattr(programs_module, "compiler_options", lambda platform: options)
    monkeypatch.setattr(programs_module, "_UNKNOWN_OPTIONS", set())
    ones = np.ones(7, np.float32)
    meeting = threading.Barrier(4, timeout=20)

    def ask() -> float:
        meeting.wait()
        return float(sum_of(Programs(), ones, ones)[0])

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask) for _ in range(4)]
        assert [answer.result() for answer in answers] == [2.0] * 4
    assert {"xla_cpu_of_another_jaxlib"} == programs_module._UNKNOWN_OPTIONS


def test_a_program_has_the_settings_of_the_platform_that_its_arguments_are_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def named(x: jax.Array) -> jax.Array:
        return x + len(current_platform())

    programs = Programs()
    function = CompiledFunction(programs, "named", named)
    here = jax.device_put(np.zeros(2, np.float32), jax.devices()[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "elsewhere")
    assert function(here, label="")[0] == len("cpu")
    assert function(np.zeros(3, np.float32), label="")[0] == len("elsewhere")
    # JAX has a trace of this function for these shapes: it must not serve another platform.
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    elsewhere = Placement("anywhere", 1)
    monkeypatch.setattr(programs_module, "placement_of", lambda *arguments: elsewhere)
    again = CompiledFunction(Programs(), "named", named)
    assert again(here, label="")[0] == len("anywhere")


def test_a_failed_compilation_is_told_and_tried_again() -> None:
    programs = Programs()
    with pytest.raises(TypeError):
        sum_of(programs, np.ones(2, np.float32), np.ones(3, np.float32))
    assert len(programs) == 0


def test_all_models_of_a_process_share_one_limit_of_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs_module, "_ALL_PROGRAMS", weakref.WeakSet())
    monkeypatch.setattr(programs_module, "PROCESS_CAPACITY", 3)
    first, second = Programs(), Programs()
    one, two, three = (np.ones(size, np.float32) for size in (1, 2, 3))
    sum_of(first, one, one)
    sum_of(first, two, two)
    sum_of(second, one, one)
    sum_of(first, one, one)
    sum_of(second, three, three)
    assert set(first.seconds_by_label("sum")) == {"(1,) numbers"}
    assert set(second.seconds_by_label("sum")) == {"(1,) numbers", "(3,) numbers"}


def test_each_compilation_is_logged_and_stands_in_the_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="pid_jax")
    programs = Programs()
    for size in (2, 5, 2):
        sum_of(programs, np.ones(size, np.float32), np.ones(size, np.float32))
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" in ")[0] for message in messages] == [
        "compiled the sum for (2,) numbers",
        "compiled the sum for (5,) numbers",
    ]
    assert messages[1].endswith("(2 programs so far)")
    rows = str(programs).splitlines()
    assert [row.split(" s  ")[1] for row in rows] == [
        "sum        (2,) numbers",
        "sum        (5,) numbers",
        "in all, 2 programs",
    ]
