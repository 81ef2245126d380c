"""What the command lines share."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from pid_jax.command_line import keep_compiled_programs, user_errors
from pid_jax.errors import UserError


@pytest.fixture
def cache_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves JAX's own setting as it was."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_user_error_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, user_errors():
        raise UserError("file.jsonl, line 3: no document")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: file.jsonl, line 3: no document\n"


def test_a_fault_of_the_code_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), user_errors():
        _ = 1 / 0


def test_compiled_programs_are_kept_in_the_users_cache(
    cache_directory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_compiled_programs() == tmp_path / "pid_jax" / "jax"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "pid_jax" / "jax")


def test_jaxs_own_variable_wins(cache_directory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert keep_compiled_programs() is None
    assert jax.config.jax_compilation_cache_dir == before
