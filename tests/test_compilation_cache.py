"""Compiled programs outlive their process, where nobody has said otherwise."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from pid_jax.compilation_cache import enable_compilation_cache
from pid_jax.inference.model import PidModel


@pytest.fixture
def cache_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves JAX's own setting as it was."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_go_to_the_users_cache(
    cache_directory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compilation_cache() == tmp_path / "pid_jax" / "jax"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "pid_jax" / "jax")


def test_jaxs_own_variable_wins(cache_directory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert enable_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == before


SCRIPT = """
import json, sys
from collections import Counter
import jax
from pid_jax.inference.model import PidModel

seen = Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name.rsplit("/", 1)[-1]]))
model = PidModel.from_pretrained(sys.argv[1])
model.generate([[5] * 40], [[[7], [8, 9]]], max_new_tokens=4)
json.dump([len(model.programs.compilations), seen["cache_hits"], seen["cache_misses"]], sys.stdout)
"""


def test_a_second_process_compiles_nothing_however_quickly_it_would_compile(
    tiny_model: PidModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        del environment[name]

    def run() -> list[int]:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model")]
        ended = subprocess.run(command, env=environment, capture_output=True, check=True)
        counts: list[int] = json.loads(ended.stdout)
        return counts

    programs, hits, misses = run()
    assert (programs, hits) == (3, 0)
    assert misses >= programs
    assert run() == [programs, misses, 0]
