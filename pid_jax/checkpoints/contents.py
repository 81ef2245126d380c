"""What a path holds: a training run, a Hugging Face checkpoint, or what is neither, and why."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pid_jax.errors import UserError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "training_args", "rng_state")


def is_run(path: str | Path) -> bool:
    """Whether a directory is that of a training run: its `config.json` has the keys of one."""
    try:
        content = json.loads((Path(path) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and isinstance(content.get("checkpoint"), dict)
        and "model_type" not in content
    )


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raises UserError, by file, where the system does not let something be read."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        raise UserError(f"{place}: cannot be read ({error.strerror or error})") from error


def check_readable(path: Path) -> None:
    """Raises UserError for a file that is empty, or stands for one that Git LFS holds."""
    with reading(path), path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise UserError(
            f"{path}: a pointer of Git LFS, not the file itself: fetch it, with `git lfs pull` in "
            "the repository, say"
        )
    if not start:
        raise UserError(f"{path}: the file is empty: copy it again")


def why_no_config(directory: Path) -> str:
    """A sentence on a directory without `config.json`: what it is, and what to do."""
    names = sorted(path.name for path in directory.iterdir())
    run = next((up for up in [*directory.absolute().parents][:2] if is_run(up)), None)
    if run is not None and directory.absolute().relative_to(run).parts[0] == "checkpoints":
        return f"{directory}: a part of the training run {run}: name that"
    if not names:
        return f"{directory}: the directory is empty"
    if "adapter_config.json" in names:
        return f"{directory}: {_adapter(directory)}"
    trained = sorted(
        (name for name in names if _is_step(directory, name)), key=lambda name: int(name[11:])
    )
    if trained:
        return (
            f"{directory}: holds checkpoints of transformers' Trainer, not one itself: name one of "
            f"them, {directory / trained[-1]} say, which is the last"
        )
    if {"checkpoints", "model"} & set(names):
        return (
            f"{directory}: a training run without its config.json: it was stopped before it began, "
            "or has lost the file. Run train.py again with this --workdir"
        )
    return f"{directory / 'config.json'}: no such file; the directory holds {_listed(names)}"


def why_no_weights(where: str, names: Collection[str]) -> str:
    """A sentence on a checkpoint without safetensors: what is there instead, and what to do.

    where: its directory or hub id. names: its files.
    """
    names = sorted(names)
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if suffix in ("bin", "pt", "pth", "ckpt") and not stem.startswith(_NOT_WEIGHTS):
            return (
                f"{where}: {name}: weights of this kind are not read, since loading a pickle "
                "can run any code. Convert them once, where you trust the file, with torch and "
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
                f"{where}: {name}: weights for {framework} are not read, nor by transformers 5. "
                f"Convert them once with transformers 4, torch and {framework}: "
                f'AutoModelForSeq2SeqLM.from_pretrained("{where}", {option}=True)'
                ".save_pretrained(NEW_DIRECTORY) writes safetensors; AutoTokenizer does the same "
                "for the tokenizer."
            )
    if "adapter_config.json" in names and Path(where).is_dir():
        return f"{where}: {_adapter(Path(where))}"
    if Path(where).name == "model" and is_run(Path(where).absolute().parent):
        run = Path(where).absolute().parent
        return f"{where}: a part of the training run {run}, without weights: name that"
    return (
        f"{where}: neither model.safetensors nor model.safetensors.index.json is there; it holds "
        f"{_listed(names)}"
    )


def _is_step(directory: Path, name: str) -> bool:
    prefix, _, number = name.partition("-")
    return prefix == "checkpoint" and number.isdigit() and (directory / name).is_dir()


def _adapter(directory: Path) -> str:
    try:
        about = json.loads((directory / "adapter_config.json").read_bytes())
        base = str(about["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        base = "BASE_MODEL"
    return (
        f"a PEFT adapter of {base}, not a model. Merge the two once, with peft, torch and "
        f'transformers: PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained("{base}"), '
        f'"{directory}").merge_and_unload().save_pretrained(NEW_DIRECTORY); save the tokenizer '
        "there, too"
    )


def _listed(names: Collection[str]) -> str:
    shown = [*names][:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
