"""What a run has read, saved with it, so that a later command with other data is refused.

`<workdir>/data.json` tells examples by their texts, whatever file, archive or prepared data set
they are read from, and the model's description and tokenizer by their files.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pid_jax.atomic_file import replacing
from pid_jax.data.examples import Example
from pid_jax.errors import UserError

log = logging.getLogger(__name__)

FILE = "data.json"
OPTIMIZER = "optimizer"


class Examples(Iterable[Example]):
    """Examples to be read once, and then their number and a digest of their texts."""

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
        """Of what has been read so far."""
        return self._digest.hexdigest()


def of_run(
    config: ConfigDict, train: Examples, validation: Examples, model: Path
) -> dict[str, dict[str, Any]]:
    """By name what the run reads. Of the validation data the choice from it is part."""
    path = str(config.data.path)
    of_model = hashlib.blake2b(digest_size=16)
    for file in sorted(model.glob("*")):
        if file.is_file() and file.suffix != ".safetensors":
            of_model.update(f"{file.name}\0{len(file.read_bytes())}\0".encode() + file.read_bytes())
    return {
        "training data": {
            "path": path,
            "split": str(config.data.train_split),
            "examples": train.count,
            "digest": train.digest,
        },
        "validation data": {
            "path": path,
            "split": str(config.data.validation_split),
            "chosen": int(config.evaluation.documents),
            "examples": validation.count,
            "digest": validation.digest,
        },
        "model and tokenizer": {"path": str(model), "digest": of_model.hexdigest()},
    }


def check(workdir: Path, read: Mapping[str, Mapping[str, Any]], *, other_data: bool) -> None:
    """Raises UserError where the run has read something else before, unless `other_data`.

    Nothing is known of runs of earlier versions. Other validation data that the configuration
    names is no reason: it changes no training step.
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
            f"{workdir} holds a run that has read something else: {'; '.join(different)}. Use "
            "another --workdir, restore what was there, or pass --other-data to go on with this"
        )
    for sentence in different:
        log.warning("%s: the run goes on with the latter", sentence)


def check_optimizer(workdir: Path, now: Mapping[str, str]) -> None:
    """Raises UserError where the checkpoint has the state of another optimizer.

    Logs a warning where the state is the same, but the update computes something else.
    """
    before = _before(workdir).get(OPTIMIZER)
    if not isinstance(before, Mapping):
        return
    if before.get("state", now["state"]) != now["state"]:
        raise UserError(
            f"{workdir} holds a run with another optimizer, whose state does not fit this one's. "
            "Use another --workdir, or the optimizer of before to go on"
        )
    if before.get("update", now.get("update")) != now.get("update"):
        log.warning(
            "%s: the update of the optimizer was %s, is %s (another version of JAX or optax can "
            "change this, too): the run goes on with the latter",
            workdir,
            str(before.get("update"))[:12],
            str(now.get("update"))[:12],
        )


def _before(workdir: Path) -> dict[str, Any]:
    """What `write` wrote; nothing for runs of earlier versions."""
    file = workdir / FILE
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}): remove it to go on") from error
    return content if isinstance(content, dict) else {}


def write(workdir: Path, read: Mapping[str, Mapping[str, Any]]) -> None:
    """Saves what the run reads from now on."""
    with replacing(workdir / FILE) as file:
        file.write_text(json.dumps(read, indent=2) + "\n", encoding="utf-8")


def _described(known: Mapping[str, Any]) -> str:
    examples = f"{known['examples']:,} examples, " if "examples" in known else ""
    return f"{known.get('path') or 'generated'} ({examples}digest {str(known.get('digest'))[:12]})"
