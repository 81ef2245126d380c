"""What `import pid_jax` costs."""

import subprocess
import sys

import pytest

HEAVY = (
    "grain",
    "huggingface_hub",
    "ml_collections",
    "orbax",
    "rouge_score",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
)


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The top-level modules that a fresh interpreter holds after `import pid_jax`."""
    program = "import sys, pid_jax; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("package", HEAVY)
def test_importing_pid_jax_leaves_it_out(imported: set[str], package: str) -> None:
    assert package not in imported


def test_importing_pid_jax_brings_jax(imported: set[str]) -> None:
    # Otherwise the statements above would hold of an interpreter that failed to import anything.
    assert {"jax", "flax", "pid_jax"} <= imported
