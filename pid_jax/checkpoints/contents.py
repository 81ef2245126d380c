"""Contents of a path: a training run, a Hugging Face checkpoint, or an explanation of neither."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pid_jax.errors import UserError

CHECKPOINTS = "checkpoints"
FROZEN = "frozen"
"""The folder of frozen parameters in that of the checkpoints, see `pid_jax.checkpoints.frozen`."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "training_args", "rng_state")


def is_run(path: str | Path) -> bool:
    """Whether a directory is that of a training run, by the keys of its `config.json`."""
    try:
        content = json.loads((Path(path) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and isinstance(content.get("checkpoint"), dict)
        and "model_type" not in content
    )


class RunPath(NamedTuple):
    """A training run, and one of its checkpoints."""

    workdir: Path
    step: Literal["best"] | int


def run_of(path: str | Path) -> RunPath | None:
    """The run whose directory, or directory of a checkpoint (`checkpoints/STEP`), `path` names.

    None for any other path.
    """
    path = Path(path)
    if is_run(path):
        return RunPath(path, "best")
    path = path.absolute()
    if path.name.isdigit() and path.parent.name == CHECKPOINTS and is_run(path.parents[1]):
        return RunPath(path.parents[1], int(path.name))
    return None


def saved_steps(workdir: str | Path) -> list[int]:
    """Steps with a complete checkpoint, ascending. Empty without a run."""
    names = (child.name for child in (Path(workdir) / CHECKPOINTS).glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns the OSError of a read into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        file = error.filename or path
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def check_readable(path: Path) -> None:
    """Raises UserError for an empty file and for a pointer of Git LFS."""
    with reading(path), path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise UserError(
            f"{path}: a pointer of Git LFS, not the file itself: fetch the file, for example with "
            "`git lfs pull` in the repository"
        )
    if not start:
        raise UserError(f"{path}: the file is empty: copy it again")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for a missing or invalid file."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    check_readable(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content


def why_no_config(directory: Path) -> str:
    """Explains a directory without `config.json`, for a message: its content and the remedy."""
    names = sorted(path.name for path in directory.iterdir())
    run = next((up for up in [*directory.absolute().parents][:3] if is_run(up)), None)
    if run is not None and directory.absolute().relative_to(run).parts[0] == "checkpoints":
        return f"{directory}: a part of the training run {run}: name the run"
    if not names:
        return f"{directory}: the directory is empty"
    trained = sorted(
        (name for name in names if _is_step(directory, name)), key=lambda name: int(name[11:])
    )
    if trained:
        return (
            f"{directory}: contains checkpoints of transformers' Trainer and is none itself: name "
            f"one of them, for example the last, {directory / trained[-1]}"
        )
    if {"checkpoints", "model"} & set(names):
        return (
            f"{directory}: a training run without config.json: it was stopped before its first "
            "step, or the file was deleted. Run train.py again with this --workdir"
        )
    return f"{directory / 'config.json'}: no such file; the directory contains {_listed(names)}"


def why_no_weights(where: str, names: Collection[str]) -> str:
    """Explains a checkpoint without safetensors, for a message: its content and the remedy.

    where: its directory or hub id. names: its files.
    """
    names = sorted(names)
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if suffix in ("bin", "pt", "pth", "ckpt") and not stem.startswith(_NOT_WEIGHTS):
            return (
                f"{where}: {name}: pickled weights are not read, because loading a pickle can run "
                "arbitrary code. If you trust the file, convert it once with torch and "
                f'transformers: AutoModelForSeq2SeqLM.from_pretrained("{where}")'
                ".save_pretrained(NEW_DIRECTORY) writes safetensors; AutoTokenizer does the same "
                "for the tokenizer."
            )
    for name, framework, option in (
        ("flax_model.msgpack", "Flax", "from_flax"),
        ("tf_model.h5", "TensorFlow", "from_tf"),
    ):
        if name in names:
            return (
                f"{where}: {name}: weights for {framework} are not supported here or by "
                f"transformers 5. With transformers 4, torch and {framework}, convert it once: "
                f'AutoModelForSeq2SeqLM.from_pretrained("{where}", {option}=True)'
                ".save_pretrained(NEW_DIRECTORY) writes safetensors; AutoTokenizer does the same "
                "for the tokenizer."
            )
    if Path(where).name == "model" and is_run(Path(where).absolute().parent):
        run = Path(where).absolute().parent
        return f"{where}: a part of the training run {run}, without weights: name the run"
    return (
        f"{where}: neither model.safetensors nor model.safetensors.index.json is there; it "
        f"contains {_listed(names)}"
    )


def _is_step(directory: Path, name: str) -> bool:
    prefix, _, number = name.partition("-")
    return prefix == "checkpoint" and number.isdigit() and (directory / name).is_dir()


def _listed(names: Collection[str]) -> str:
    shown = [*names][:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
