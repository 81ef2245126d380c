"""The layout of the package: a room imports only from floors below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. Rooms are modules and packages of pid_jax, and the programs beside it.
FLOORS = (
    ("errors",),
    ("backends", "directory_lock", "disk_errors", "json_spans", "json_text"),
    ("atomic_file", "command_line", "compilation_cache", "programs"),
    ("data", "metrics", "models", "sharding"),
    ("arguments", "prompt_in_decoder", "tasks", "checkpoints"),
    ("decoding",),
    ("generation_defaults", "inputs", "outputs"),
    ("model",),
    ("answering", "scoring"),
    ("html_report",),
    ("predict", "evaluation", "export", "data.prepare"),
    ("training",),
    ("train", "eval", "quickstart"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# A command that lies in a package for its name's sake, `python -m pid_jax.data.prepare`: no part
# of it, so it may know what is above.
APART = {("data", "prepare"): "data.prepare"}
# One room in three files: an evaluation is a prediction with a score.
ONE_ROOM = {"predict", "evaluation", "export"}

SOURCES = sorted(
    [
        path
        for path in (ROOT / "pid_jax").rglob("*.py")
        if path != ROOT / "pid_jax" / "__init__.py"  # the shop window: what it shows lies behind
    ]
    + [ROOT / "train.py", ROOT / "eval.py"]
)


def room_of(path: Path) -> str:
    place = path.relative_to(ROOT).with_suffix("").parts
    return room_named(place[1:]) if place[0] == "pid_jax" else place[0]


def room_named(place: tuple[str, ...]) -> str:
    return APART.get(place[:2], place[0])


def rooms_imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every room of pid_jax that a file imports, anywhere in it, and the line."""
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
                yield room_named(tuple(rest.split("."))), node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_floors_below_its_own(path: Path) -> None:
    room = room_of(path)
    for other, line in rooms_imported(path):
        same_room = other == room or {other, room} <= ONE_ROOM
        assert same_room or FLOOR_OF[other] < FLOOR_OF[room], (
            f"{path.relative_to(ROOT)}:{line}: {room} (floor {FLOOR_OF[room]}) "
            f"imports {other} (floor {FLOOR_OF[other]})"
        )


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in SOURCES} <= FLOOR_OF.keys()


def test_the_pipeline_knows_no_task_and_the_metrics_know_nothing() -> None:
    for room, allowed in (("data", {"data", "errors"}), ("metrics", {"metrics", "errors"})):
        for path in (ROOT / "pid_jax" / room).glob("*.py"):
            if room_of(path) != room:
                continue
            assert {other for other, _ in rooms_imported(path)} <= allowed, path.name
