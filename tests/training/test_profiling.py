import jax
import jax.numpy as jnp
import pytest

from pid_jax.errors import UserError
from pid_jax.training import profiling
from pid_jax.training.profiling import StepProfiler


@pytest.mark.parametrize(("text", "numbers"), [("", []), ("10:13", [10, 11, 12]), ("1:2", [1])])
def test_the_first_step_and_the_one_after_the_last(text, numbers):
    assert [*profiling.steps(text)] == numbers


@pytest.mark.parametrize("text", ["10", "10:10", "5:3", "0:3", "10-13", "a:b", ":3", "1:2:3"])
def test_another_form_is_refused(text):
    with pytest.raises(UserError, match=r'config\.train\.profile_steps is .*such as "10:13"'):
        profiling.steps(text)


@pytest.fixture
def calls(monkeypatch):
    """The calls of JAX's profiler."""
    calls = []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda where: calls.append(f"start {where.name}")
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def run(profiler, calls, numbers):
    state = jnp.zeros(2)
    with profiler:
        for number in numbers:
            with profiler.step(number, state):
                calls.append(number)
            profiler.started(number, state)


def test_only_the_chosen_steps_are_profiled(tmp_path, calls):
    run(StepProfiler(tmp_path, range(3, 5)), calls, range(1, 7))
    assert calls == [1, 2, "start profile", 3, 4, "stop", 5, 6]


def test_a_run_that_resumes_among_them_profiles_the_rest(tmp_path, calls):
    run(StepProfiler(tmp_path, range(3, 5)), calls, range(4, 6))
    assert calls == ["start profile", 4, "stop", 5]


def test_a_run_that_ends_among_them_ends_the_profile(tmp_path, calls):
    run(StepProfiler(tmp_path, range(3, 9)), calls, range(1, 4))
    assert calls == [1, 2, "start profile", 3, "stop"]
