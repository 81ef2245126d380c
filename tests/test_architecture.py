"""The layers of the package: a module imports only from layers below its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From bottom to top. Units are modules and packages of pid_jax, and the programs beside it.
LAYERS = (
    ("errors",),
    ("distributed", "sharding"),
    ("backends", "directory_lock", "disk_errors", "json_spans", "json_text"),
    (
        *("atomic_file", "chips", "command_line", "compilation_cache", "device_memory", "flops"),
        "programs",
    ),
    ("data", "metrics", "models"),
    ("token_scores",),
    ("arguments", "prompt_in_decoder", "tasks", "checkpoints"),
    ("decoding",),
    ("inference",),
    ("scoring", "export"),
    ("html_report",),
    ("evaluation",),
    ("prediction",),
    ("training", "data.prepare"),
    ("compile_ahead",),
    ("commands",),
    ("train", "eval", "quickstart", "predict", "answering", "__main__"),
)
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}
# A command that is in a package for the sake of its name, `python -m pid_jax.data.prepare`.
COMMANDS = {
    ("data", "prepare"): "data.prepare",
    ("evaluation", "__main__"): "__main__",
    ("compile_ahead", "__main__"): "__main__",
}
# Modules whose function `main` runs the command that has their name.
FORWARDING = {"data.prepare", "evaluation", "export"}

SOURCES = sorted(
    [
        path
        for path in (ROOT / "pid_jax").rglob("*.py")
        if path != ROOT / "pid_jax" / "__init__.py"  # it re-exports from all layers
    ]
    + [ROOT / "train.py", ROOT / "eval.py"]
)


def unit_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return unit_named(parts[1:]) if parts[0] == "pid_jax" else parts[0]


def unit_named(parts: tuple[str, ...]) -> str:
    return COMMANDS.get(parts[:2], parts[0])


def units_imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every unit of pid_jax that a file imports, anywhere in it, and the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "pid_jax" and rest:
                yield unit_named(tuple(rest.split("."))), node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_layers_below_its_own(path: Path) -> None:
    unit = unit_of(path)
    for other, line in units_imported(path):
        forwards = unit in FORWARDING and other == "commands"
        assert forwards or other == unit or LAYER_OF[other] < LAYER_OF[unit], (
            f"{path.relative_to(ROOT)}:{line}: {unit} (layer {LAYER_OF[unit]}) "
            f"imports {other} (layer {LAYER_OF[other]})"
        )


def test_every_unit_has_a_layer() -> None:
    assert {unit_of(path) for path in SOURCES} <= LAYER_OF.keys()


def test_the_pipeline_knows_no_task_and_the_metrics_know_nothing() -> None:
    for unit, allowed in (("data", {"data", "errors"}), ("metrics", {"metrics", "errors"})):
        for path in (ROOT / "pid_jax" / unit).glob("*.py"):
            if unit_of(path) != unit:
                continue
            assert {other for other, _ in units_imported(path)} <= allowed, path.name


def test_no_two_classes_have_one_name() -> None:
    names = [
        (node.name, str(path.relative_to(ROOT)))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    by_name: dict[str, list[str]] = {}
    for name, path in names:
        by_name.setdefault(name, []).append(path)
    assert {name: paths for name, paths in by_name.items() if len(paths) > 1} == {}
