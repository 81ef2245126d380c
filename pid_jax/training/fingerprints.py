"""Fingerprints of a run's data, to detect changes when the run resumes.

`<workdir>/data.json` has digests of the texts of the examples, independent of the file format, and
of the files of the model's configuration and tokenizer.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from pid_jax.atomic_file import replacing
from pid_jax.data.examples import Example
from pid_jax.errors import UserError

log = logging.getLogger(__name__)

FILE = "data.json"
OPTIMIZER = "optimizer"


class Examples(Iterable[Example]):
    """Examples that count themselves and digest their texts during iteration. Read them once."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._examples = examples
        self._digest = hashlib.blake2b(digest_size=16)
        self.count = 0

    def __iter__(self) -> Iterator[Example]:
        for example in self._examples:
            self.count += 1
            texts: list[str | None] = [example.id, example.document]
            for subtask in example.subtasks:
                texts += subtask.id, subtask.prompt, subtask.target
            self._digest.update(json.dumps(texts).encode())
            yield example

    @property
    def digest(self) -> str:
        """The digest of the examples read so far, in hexadecimal."""
        return self._digest.hexdigest()


class Counted(Protocol):
    """Examples that were read, or their token ids."""

    count: int

    @property
    def digest(self) -> str:
        """The digest of `Examples`."""


def of_data(
    config: ConfigDict, train: Counted, validation: Counted, name: str = ""
) -> dict[str, dict[str, Any]]:
    """The fingerprints of a task's data by name: paths, splits, counts and digests.

    name: the name of the task in a mixture.
    """
    path = str(config.data.path)
    of = f" of {name}" if name else ""
    return {
        f"training data{of}": {
            "path": path,
            "split": str(config.data.train_split),
            "examples": train.count,
            "digest": train.digest,
        },
        f"validation data{of}": {
            "path": path,
            "split": str(config.data.validation_split),
            "chosen": int(config.evaluation.documents),
            "examples": validation.count,
            "digest": validation.digest,
        },
    }


def of_model(model: Path) -> dict[str, dict[str, Any]]:
    """The fingerprint of the files of the model's configuration and tokenizer."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(model.glob("*")):
        if file.is_file() and file.suffix != ".safetensors":
            digest.update(f"{file.name}\0{len(file.read_bytes())}\0".encode() + file.read_bytes())
    return {"model and tokenizer": {"path": str(model), "digest": digest.hexdigest()}}


def check(workdir: Path, read: Mapping[str, Mapping[str, Any]], *, other_data: bool) -> None:
    """Raises UserError if the run has read other data before, unless `other_data`.

    Runs of earlier versions have no fingerprints. Validation data that differs because of the
    configuration is allowed, because it does not affect training steps.
    """
    before = _before(workdir)
    different = [
        f"the {name} was {_described(earlier)}, is {_described(now)}"
        for name, now in read.items()
        if isinstance(earlier := before.get(name), Mapping)
        and earlier.get("digest") != now["digest"]
        and all(earlier.get(key) == now.get(key) for key in ("split", "chosen"))
    ]
    if different and not other_data:
        raise UserError(
            f"{workdir} holds a run with other data: {'; '.join(different)}. Use another "
            "--workdir, restore the earlier data, or pass --other-data to continue with this data"
        )
    for sentence in different:
        log.warning("%s: the run continues with the latter", sentence)


def check_optimizer(workdir: Path, now: Mapping[str, str]) -> None:
    """Raises UserError if the checkpoint has the state of another optimizer.

    now: fingerprint of the optimizer. Logs a warning if only the update differs.
    """
    before = _before(workdir).get(OPTIMIZER)
    if not isinstance(before, Mapping):
        return
    if before.get("state", now["state"]) != now["state"]:
        raise UserError(
            f"{workdir} holds a run with another optimizer, whose state does not fit this one's. "
            "Use another --workdir, or the earlier optimizer to continue"
        )
    if before.get("update", now.get("update")) != now.get("update"):
        log.warning(
            "%s: the update of the optimizer was %s, is %s (a new version of JAX or optax can also "
            "change it): the run continues with the latter",
            workdir,
            str(before.get("update"))[:12],
            str(now.get("update"))[:12],
        )


def _before(workdir: Path) -> dict[str, Any]:
    """The content of data.json. Empty for runs of earlier versions."""
    file = workdir / FILE
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}): delete it to continue") from error
    return content if isinstance(content, dict) else {}


def write(workdir: Path, read: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the fingerprints to the working directory."""
    with replacing(workdir / FILE) as file:
        file.write_text(json.dumps(read, indent=2) + "\n", encoding="utf-8")


def _described(known: Mapping[str, Any]) -> str:
    examples = f"{known['examples']:,} examples, " if "examples" in known else ""
    return f"{known.get('path') or 'generated'} ({examples}digest {str(known.get('digest'))[:12]})"
