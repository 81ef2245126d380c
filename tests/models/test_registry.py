"""The registry of families: what it promises, and that each family stands by itself."""

import ast
from pathlib import Path

import pytest

from pid_jax import models

ROOT = Path(__file__).parent.parent.parent


def imported_by(path: Path) -> set[str]:
    """The names of modules, and of what is taken from them, that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def family_files() -> list[Path]:
    folder = ROOT / "pid_jax" / "models"
    return [path for path in folder.glob("*.py") if "\nFAMILY = " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", family_files(), ids=lambda path: path.stem)
def test_no_familys_file_imports_anothers(path: Path) -> None:
    others = {other.stem for other in family_files()} - {path.stem}
    modules = {
        name.split(".")[2] for name in imported_by(path) if name.startswith("pid_jax.models.")
    }
    assert not modules & others


def test_every_family_has_its_file() -> None:
    assert len(family_files()) == len(models.supported())
    types = models.model_types()
    assert len(types) == len(set(types))


def test_the_idea_knows_no_family() -> None:
    """Nor do decoding, training and the commands: they read the protocol."""
    names = {path.stem for path in family_files()} | set(models.model_types())
    for room in ("prompt_in_decoder.py", "decoding", "inputs.py", "model.py", "training/loop.py"):
        place = ROOT / "pid_jax" / room
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            constants = {
                node.value
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not constants & names, path


@pytest.mark.slow
def test_the_table_in_the_readme_is_the_registrys() -> None:
    """Its largest checkpoints are built by shape."""
    assert models.table() in (ROOT / "README.md").read_text(encoding="utf-8")
