"""The registry of families, and what families may import."""

import ast
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec

from pid_jax import models
from tests.helpers.tiny_t5 import TINY

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


FOLDER = ROOT / "pid_jax" / "models"
RELATIVES = {"longt5": "t5", "led": "bart", "pegasus": "bart", "t5gemma2": "t5gemma"}
"""The family that another one is made of."""


def families() -> list[Path]:
    return sorted(path.parent for path in FOLDER.glob("*/__init__.py"))


@pytest.mark.parametrize("folder", families(), ids=lambda path: path.name)
def test_a_family_imports_only_the_one_that_it_is_made_of(folder: Path) -> None:
    others = {other.name for other in families()} - {folder.name, RELATIVES.get(folder.name)}
    for path in folder.glob("*.py"):
        modules = {
            name.split(".")[2] for name in imported_by(path) if name.startswith("pid_jax.models.")
        }
        assert not modules & others, path


@pytest.mark.parametrize("folder", families(), ids=lambda path: path.name)
def test_the_files_of_a_family_say_what_is_in_them(folder: Path) -> None:
    names = {path.name for path in folder.glob("*.py")}
    assert names == {"__init__.py", "configuration.py", "modules.py", "huggingface.py"}


def test_every_family_is_registered() -> None:
    types = models.model_types()
    assert len(types) == len(set(types))
    assert {folder.name for folder in families()} <= set(types)


def test_shared_layers_know_no_family() -> None:
    names = {folder.name for folder in families()}
    for path in FOLDER.glob("*.py"):
        if path.name != "registry.py":
            modules = {name.split(".")[2] for name in imported_by(path) if name.count(".") > 1}
            assert not modules & names, path


def test_no_two_classes_of_models_and_backends_have_one_name() -> None:
    paths = [*FOLDER.rglob("*.py"), *(ROOT / "pid_jax" / "backends").rglob("*.py")]
    classes = [
        node.name
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(classes) == len(set(classes))


def test_the_idea_knows_no_family() -> None:
    """Nor do decoding, training and the commands: they read the protocol."""
    names = {folder.name for folder in families()} | set(models.model_types())
    for part in ("prompt_in_decoder.py", "decoding", "inference", "training/loop.py"):
        path_of_part = ROOT / "pid_jax" / part
        for path in path_of_part.rglob("*.py") if path_of_part.is_dir() else [path_of_part]:
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


def test_a_model_is_traced_once_and_each_caller_has_a_tree_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced, eval_shape = [], jax.eval_shape

    def counted(*arguments: Any) -> Any:
        traced.append(arguments)
        return eval_shape(*arguments)

    monkeypatch.setattr(jax, "eval_shape", counted)
    config = TINY | {"vocab_size": 61}  # of no other test
    first = models.abstract_params(models.build(config))
    first["encoder"].clear()
    second = models.abstract_params(models.build(config))
    assert jax.tree.structure(second) == jax.tree.structure(
        models.logical_axes(models.build(config)), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    assert second["encoder"]
    assert len(traced) == 1
