"""Programs are compiled once for each shape, and each compilation is told."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.programs import Programs

add = jax.jit(lambda x, y, *, negative: -(x + y) if negative else x + y, static_argnames="negative")


def sum_of(programs: Programs, x: np.ndarray, y: np.ndarray, negative: bool = False) -> jax.Array:
    fixed, arguments, static = (x,), (y,), {"negative": negative}
    program = programs.get("sum", add, fixed, arguments, static, lambda: f"{y.shape} numbers")
    total: jax.Array = program(x, y)
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


def test_a_shape_compiled_ahead_is_found_by_its_arrays() -> None:
    programs = Programs()
    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    programs.get("sum", add, (shape,), (shape,), {"negative": False}, lambda: "4")
    four = np.ones(4, np.float32)
    sum_of(programs, four, four)
    assert len(programs.compilations) == 1


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
