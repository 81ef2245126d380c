"""Shared fixtures: array annotations checked at run time, tiny models, the real data's place."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Where arrays are computed, every shape annotation becomes a check, from the first import on.
ARRAY_MODULES = [
    "pid_jax.backends",
    "pid_jax.data.batching",
    "pid_jax.decoding",
    "pid_jax.models",
    "pid_jax.prompt_in_decoder",
    "pid_jax.training.step",
]
install_import_hook(ARRAY_MODULES, "beartype.beartype")

# What one test has compiled is found by the next, here and in the processes that tests start. Each
# worker has a folder, because JAX's entries are not written atomically; tests that kill processes
# use one of their own. The user's compiled programs are neither read nor added to.
_COMPILED = tempfile.TemporaryDirectory(prefix="pid_jax-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from tests.helpers.quick_compilation import compile_quickly  # noqa: E402

compile_quickly()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from pid_jax import models  # noqa: E402
from pid_jax.inference.model import PidModel  # noqa: E402
from tests.helpers import tiny_checkpoint  # noqa: E402
from tests.helpers.tiny_t5 import TINY  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled_programs() -> Iterator[None]:
    """Each holds memory maps, and Linux grants a process 65,530: the whole suite needs more."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _optimise(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles as users have it, for tests with the mark."""
    wanted = request.node.get_closest_marker("optimised") is not None
    if wanted:
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    if wanted:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tiny_model() -> PidModel:
    """Random weights, no tokenizer."""
    model = models.build(TINY)
    return PidModel(model, models.init_params(model, jax.random.key(0)))


@pytest.fixture(scope="session")
def varied_model() -> PidModel:
    """Few tokens, and an end token that resembles them all: outputs differ, end early and late.

    Its compiled programs serve all tests of decoding: use the shapes that others use.
    """
    random = np.random.default_rng(8)
    model = models.build(TINY | {"vocab_size": 24, "tie_word_embeddings": False})
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape).astype(np.float32),
        models.init_params(model, jax.random.key(0)),
    )
    head = params["lm_head"]["kernel"]
    params["lm_head"]["kernel"] = head.at[:, 1].add(0.35 * head[:, 2:].sum(1))
    return PidModel(model, params)


@pytest.fixture(scope="session")
def text_model() -> PidModel:
    """Random weights and a tokenizer."""
    return tiny_checkpoint.make()


@pytest.fixture(scope="session")
def checkpoint(text_model: PidModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model in the Hugging Face layout. Only read it."""
    directory = tmp_path_factory.mktemp("checkpoint")
    text_model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Where the public data sets lie; the test is skipped where they are not at hand."""
    if not os.environ.get("PID_JAX_DATA"):
        pytest.skip("needs real data: set PID_JAX_DATA to the folder that holds it")
    return Path(os.environ["PID_JAX_DATA"])
