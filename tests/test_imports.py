"""What `import pid_jax` costs."""

import subprocess
import sys

import pytest

import pid_jax

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
    """The top-level modules that a fresh interpreter has after a use of `pid_jax.PidModel`."""
    modules = "{name.split('.')[0] for name in sys.modules}"
    program = f"import sys, pid_jax; pid_jax.PidModel; print(*sorted({modules}))"
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


def test_jax_is_imported_on_first_use_only() -> None:
    program = "import sys, pid_jax; assert 'jax' not in sys.modules; dir(pid_jax); pid_jax.tasks"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_training_imports_no_torch_until_it_writes_for_tensorboard() -> None:
    heavy = "{'tensorboardX', 'torch'} & set(sys.modules)"
    program = f"import sys, pid_jax.training.loop; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_every_public_name_is_there_and_no_other() -> None:
    for name in pid_jax.__all__:
        assert getattr(pid_jax, name) is not None
        assert name in dir(pid_jax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pid_jax.nothing
    assert not hasattr(pid_jax, "__wrapped__")
