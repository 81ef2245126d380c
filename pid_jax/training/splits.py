"""Splits of a run's tasks: as examples, and as token ids in memory or on disk."""

import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pid_jax import tasks
from pid_jax.checkpoints import contents
from pid_jax.data import prepared, token_writing
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.examples import Example
from pid_jax.data.progress import with_progress
from pid_jax.data.token_files import ABOUT, FORMAT
from pid_jax.data.token_source import Statistics, TokenSource
from pid_jax.data.tokenizing import Tokenizer
from pid_jax.distributed import exchange
from pid_jax.models.protocol import EncoderDecoder, control_token_ids
from pid_jax.training import assembly, fingerprints, token_cache
from pid_jax.training.mixture import Part, parts

log = logging.getLogger(__name__)

TOKENIZER_EXAMPLES = 100_000
"""Training examples at most that a new tokenizer is trained on."""
DISK_BYTES = 2**28
"""`config.data.tokens="auto"` keeps the tokens of smaller data in memory."""
CACHE = "tokens"
"""Where a run's workdir has tokens on disk, unless config.data.cache names another place."""
MAX_DEPTH = 5
"""Of the folders of a source, as in `pid_jax.tasks.source_files`."""
_TOKENIZER_LIBRARIES = ("tokenizers", "transformers")


class Tokens:
    """The token ids of a split, with the number and the digest of its examples."""

    def __init__(self, source: TokenSource, count: int, digest: str) -> None:
        self.source, self.count, self.digest = source, count, digest


@dataclass
class Split:
    """A split of the task of a configuration.

    Its examples are read once into memory, or, if `on_disk`, on every pass.
    """

    config: ConfigDict
    name: str
    cache: Path
    chosen: int = 0
    """How many examples, evenly spaced. 0 for all."""
    _examples: Sequence[Example] | None = None

    @cached_property
    def on_disk(self) -> bool:
        """Whether the tokens are on disk: `config.data.tokens`, or for "auto" by size."""
        wanted = str(self.config.data.tokens)
        if wanted == "auto":
            # All processes must agree, whatever each sees of the source.
            return exchange.of_first(
                lambda: sum(size for size, _ in self._files.values()) >= DISK_BYTES
            )
        return wanted == "disk"

    def examples(self) -> Iterable[Example]:
        """The examples. Raises UserError for missing or malformed data."""
        if self.on_disk:
            return spaced(lambda: assembly.examples_of(self.config, self.name), self.chosen)
        if self._examples is None:
            whole = assembly.read_examples(self.config, self.name)
            self._examples = assembly.evenly_spaced(whole, self.chosen)
        return self._examples

    def read(self) -> None:
        """Reads examples that stay in memory until `tokens`."""
        if not self.on_disk:
            self.examples()

    def spaced(self, number: int) -> Iterable[Example]:
        """At most `number` of the examples, evenly spaced, for a tokenizer."""

        def report(count: int) -> None:
            log.info(
                "the tokenizer is trained on %s of %s examples of %s, evenly spaced",
                f"{number:,}",
                f"{count:,}",
                self.config.data.task,
            )

        return spaced(self.examples, number, report)

    def tokens(self, model: EncoderDecoder, tokenizer: Tokenizer) -> Tokens:
        """The examples as token ids. Raises UserError as `assembly.tokenize` does."""
        if self.on_disk:
            stored = self._stored(model, tokenizer)
            assembly.check_readable(stored.statistics, model, tokenizer)
            return Tokens(stored, stored.count, stored.digest)
        texts = fingerprints.Examples(self.examples())
        source = assembly.tokenize(self.config, texts, model, tokenizer)
        self._examples = None
        return Tokens(source, texts.count, texts.digest)

    def _stored(self, model: EncoderDecoder, tokenizer: Tokenizer) -> Any:
        limits = assembly.limits(self.config)
        assembly.check_positions(self.config.method, limits, model.config)
        control = control_token_ids(model.config)
        key = {
            **self._origin,
            "format": FORMAT,
            "split": self.name,
            "chosen": self.chosen,
            "limits": asdict(limits),
            "tokenizer": digest_of_tokenizer(tokenizer),
            "libraries": {name: importlib.metadata.version(name) for name in _TOKENIZER_LIBRARIES},
            "end_token_id": model.config.eos_token_id,
            "control_tokens": sorted(control),
        }

        def write(directory: Path) -> None:
            label = f"tokens of {self.config.data.task} {self.name}"
            texts = fingerprints.Examples(with_progress(self.examples(), label, log))
            token_writing.write(
                directory,
                texts,
                tokenizer,
                limits,
                vocabulary=max(assembly.vocabulary(tokenizer), model.config.vocab_size),
                end_token_id=model.config.eos_token_id,
                text_of=Detokenizer(tokenizer, control).text,
                digest=lambda: texts.digest,
                key=key,
            )
            if not texts.count:
                raise assembly.no_examples(self.config, self.name)

        return token_cache.opened(self.cache, key, write)

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """Task, options and data: equal ones give equal examples."""
        task = assembly.task_of(self.config)
        options = tasks.reading_options(task, self.config.data.options.to_dict())
        origin: dict[str, Any] = {
            "task": str(self.config.data.task),
            "options": prepared.as_json(options),
            "reader": tasks.reader_version(task),
        }
        if ":" in origin["task"]:
            origin["code"] = _digest_of_module(task)
        if (data := self._prepared) is not None:
            files = data.splits.get(self.name, {})
            return {**origin, "prepared": {name: file.sha256 for name, file in files.items()}}
        return {**origin, "files": self._files}

    @cached_property
    def _prepared(self) -> prepared.PreparedData | None:
        task = assembly.task_of(self.config)
        options = tasks.reading_options(task, self.config.data.options.to_dict())
        return prepared.find(self.config.data.path, self.config.data.task, options)

    @cached_property
    def _files(self) -> dict[str, tuple[int, int]]:
        """The size and the time of the last change of each file of the source, by name."""
        if (data := self._prepared) is not None:
            files = data.splits.get(self.name, {})
            return {name: (file.bytes, 0) for name, file in files.items()}
        path = Path(self.config.data.path or "")
        if not self.config.data.path:
            return {}
        if path.is_file():
            return {path.name: _size_and_time(path)}
        return dict(sorted(_files_in(path)))


class Data(NamedTuple):
    """The splits of one task of a run."""

    part: Part
    train: Split
    validation: Split


def of_run(config: ConfigDict, workdir: Path) -> list[Data]:
    """The training and validation splits of each part of the mixture.

    Those in memory are read. Raises UserError for missing or malformed data.
    """
    cache = Path(config.data.cache) if config.data.cache else workdir / CACHE
    data = [
        Data(
            part,
            Split(part.config, part.config.data.train_split, cache),
            Split(
                part.config, part.config.data.validation_split, cache, config.evaluation.documents
            ),
        )
        for part in parts(config)
    ]
    for one in data:
        one.train.read()
    return data


def report(split: Split, statistics: Statistics) -> None:
    """Logs what was cut, and targets that decoding changes."""
    name = split.name
    log.info("%s: %s documents; %s", name, statistics.examples, statistics.truncation)
    if statistics.targets.changed:
        log.warning("%s: %s", name, statistics.targets)


def tokenizer_texts(data: Sequence[Data]) -> Iterator[Example]:
    """Training examples to train a tokenizer on, evenly spaced over those of each task."""
    number = TOKENIZER_EXAMPLES // len(data)
    for one in data:
        yield from one.train.spaced(number)


def spaced(
    examples: Callable[[], Iterable[Example]],
    number: int,
    report: Callable[[int], None] = lambda count: None,
) -> Iterable[Example]:
    """`number` evenly spaced examples, or all of them for 0, without keeping any in memory.

    examples: opens them. Those that are no sequence are read twice, first to count them. report:
    called with the number of all examples if some are left out.
    """
    source = examples()
    if number == 0:
        return source
    count = len(source) if isinstance(source, Sequence) else sum(1 for _ in source)
    if number >= count:
        return source if isinstance(source, Sequence) else examples()
    report(count)
    if isinstance(source, Sequence):
        return (source[i * count // number] for i in range(number))
    return _picked(examples(), count, number)


def _picked(examples: Iterable[Example], count: int, number: int) -> Iterator[Example]:
    wanted = (i * count // number for i in range(number))
    following = next(wanted)
    for index, example in enumerate(examples):
        if index == following:
            yield example
            following = next(wanted, -1)


def digest_of_tokenizer(tokenizer: Any) -> str:
    """A digest of how a tokenizer encodes texts. It is the same after saving and loading."""
    digest = hashlib.blake2b(type(tokenizer).__name__.encode(), digest_size=16)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        for set_by_calls in ("truncation", "padding"):
            content.pop(set_by_calls, None)
        digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        for file in sorted(Path(directory).rglob("*")):
            # The configuration names the place that the tokenizer was loaded from.
            if file.is_file() and file.name != "tokenizer_config.json":
                digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _digest_of_module(task: tasks.Task) -> str:
    """A digest of the file that defines a task."""
    try:
        content = Path(inspect.getfile(type(task))).read_bytes()
    except (OSError, TypeError):
        return ""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _files_in(directory: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """All files but hidden ones, and those of training runs and of tokens on disk."""
    for folder, folders, files in os.walk(directory):
        here = Path(folder)
        is_deepest = len(here.relative_to(directory).parts) == MAX_DEPTH
        folders[:] = [
            name
            for name in folders
            if not is_deepest
            and not name.startswith(".")
            and not contents.is_run(here / name)
            and not (here / name / ABOUT).exists()
        ]
        for name in files:
            if not name.startswith(".") and (here / name).is_file():
                yield (here / name).relative_to(directory).as_posix(), _size_and_time(here / name)


def _size_and_time(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
