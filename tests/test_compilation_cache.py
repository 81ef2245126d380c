"""Compiled programs outlive their process, where nobody has said otherwise."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from pid_jax.compilation_cache import keep_compiled_programs


@pytest.fixture
def cache_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves JAX's own setting as it was."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


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
