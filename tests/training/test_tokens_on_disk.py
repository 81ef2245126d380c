"""Runs with tokens on disk: the metrics of memory, and a cache that is complete or made again."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from pid_jax import directory_lock, models
from pid_jax.checkpoints import huggingface, peft
from pid_jax.data import token_writing
from pid_jax.errors import UserError
from pid_jax.training import assembly, loop, splits, tokens_ahead
from pid_jax.training import config as configuration
from tests.helpers import adapted, several_processes, tiny_checkpoint, tiny_config
from tests.helpers.several_processes import ROOT

LINES = [
    {
        "id": f"d{i}",
        "document": f"a hotel in the {place} for {i} people",
        "subtasks": [{"id": "q", "prompt": "where", "target": place}],
    }
    for i, place in enumerate(["north", "south", "east", "west"] * 3)
]


def tiny(steps=10, **data):
    config = tiny_config.get_config()
    config.train.steps = steps
    config.optimizer.schedule = "constant"  # the others depend on the number of steps
    for key, value in data.items():
        config.data[key] = value
    return config


def lines_config(folder, **data):
    return tiny(task="jsonl", path=str(folder), options={}, tokens="disk", **data)


def metrics(workdir):
    return (workdir / "metrics.jsonl").read_text()


def write(folder, lines=LINES):
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


def caches(cache):
    """The complete data sets, by the first part of their names."""
    return sorted(path.parent.name.rsplit("-", 1)[0] for path in Path(cache).glob("*/tokens"))


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("memory")
    loop.train(tiny(tokens="memory"), workdir)
    return workdir


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("disk")
    loop.train(tiny(tokens="disk"), workdir)
    return workdir


def test_metrics_are_those_of_memory(in_memory, on_disk):
    assert metrics(on_disk) == metrics(in_memory)
    assert caches(on_disk / "tokens") == ["synthetic_dst-train", "synthetic_dst-validation"]
    assert not (in_memory / "tokens").exists()
    fingerprints = [json.loads((one / "data.json").read_text()) for one in (in_memory, on_disk)]
    for name in ("training data", "validation data"):
        assert fingerprints[0][name] == fingerprints[1][name]


@pytest.mark.slow
def test_a_run_goes_on_from_memory_to_disk_and_back(in_memory, tmp_path):
    for steps, tokens in ((3, "memory"), (7, "disk"), (10, "memory")):
        loop.train(tiny(steps, tokens=tokens), tmp_path)
    ours, theirs = (
        [line for line in map(json.loads, metrics(one).splitlines()) if line["split"] == "train"]
        for one in (tmp_path, in_memory)
    )
    assert ours == theirs


def test_tokens_are_made_once(on_disk, tmp_path, monkeypatch):
    def refused(*args, **options):
        raise AssertionError("the data was read again")

    monkeypatch.setattr(token_writing, "write", refused)
    loop.train(tiny(tokens="disk", cache=str(on_disk / "tokens")), tmp_path)
    assert metrics(tmp_path) == metrics(on_disk)


@pytest.mark.parametrize(
    "changed",
    [{"document_tokens": 63}, {"truncation_side": "right"}, {"target_tokens": 15}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_limits_are_other_tokens(on_disk, tmp_path, changed):
    cache = tmp_path / "tokens"
    shutil.copytree(on_disk / "tokens", cache)
    config = tiny(tokens="disk", cache=str(cache), **changed)
    loop._prepare(config, tmp_path / "run", resuming=False, other_data=False)
    assert len(caches(cache)) == 4


def test_data_that_changed_is_tokenized_again(tmp_path):
    folder, config = write(tmp_path / "data"), lines_config(tmp_path / "data")
    for lines in (LINES, LINES[:8]):
        write(folder, lines)
        materials = loop._prepare(config, tmp_path / "run", resuming=False, other_data=False)
        assert [len(source) for source in materials.validation.values()] == [len(lines)]


@pytest.mark.parametrize("name", ["records", "index", "tokens.json"])
def test_a_damaged_cache_is_made_again(on_disk, tmp_path, caplog, name):
    cache = tmp_path / "tokens"
    shutil.copytree(on_disk / "tokens", cache)
    [file] = cache.glob(f"synthetic_dst-train-*/tokens/{name}")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with caplog.at_level(logging.WARNING, "pid_jax"):
        config = tiny(tokens="disk", cache=str(cache))
        loop._prepare(config, tmp_path / "run", resuming=False, other_data=False)
    assert f"{file.parent}: damaged ({name}" in caplog.text
    assert "It is written again" in caplog.text
    assert file.read_bytes() == content


def test_a_record_that_changed_ends_the_run_with_its_name(on_disk, tmp_path):
    cache = tmp_path / "tokens"
    shutil.copytree(on_disk / "tokens", cache)
    [file] = cache.glob("synthetic_dst-train-*/tokens/records")
    content = file.read_bytes()
    file.write_bytes(bytes(byte ^ 1 for byte in content))
    with pytest.raises(UserError, match=rf"{file.parent}: damaged \(records: example \d+ has ch"):
        loop.train(tiny(tokens="disk", cache=str(cache)), tmp_path / "run")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_writing._DigestedFile, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        loop.train(lines_config(write(tmp_path / "data")), tmp_path / "run")
    assert caches(tmp_path / "run" / "tokens") == []
    assert list((tmp_path / "run" / "tokens").glob("*/*")) == []


def test_an_empty_split_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "examples_of", lambda config, split: iter(()))
    with pytest.raises(UserError, match="the split 'train' has no examples"):
        loop.train(tiny(tokens="disk"), tmp_path)
    assert caches(tmp_path / "tokens") == []


@pytest.mark.parametrize("kind", ["adapter", "larger tokenizer"])
def test_tokens_made_ahead_are_those_of_the_run(tmp_path, kind):
    base = tiny_checkpoint.write(tmp_path / "base")
    config = lines_config(write(tmp_path / "data"), cache=str(tmp_path / "cache"))
    config.model.init = str(base)
    if kind == "adapter":
        model = models.build(huggingface.read_config(base), lora=adapted.QUERIES_AND_VALUES)
        matrices = adapted.matrices(models.init_params(model, jax.random.key(0)))
        config.model.init = str(tmp_path / "adapter")
        peft.save(config.model.init, model.config, str(base), adapted.QUERIES_AND_VALUES, matrices)
    else:
        tokenizer = huggingface.load_tokenizer(base)
        tokenizer.add_tokens(["hotel"])
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        config.tokenizer.path = str(tmp_path / "tokenizer")
        config.model.partial_init = True
    ahead = [source.directory for source in tokens_ahead.tokenize_ahead(config)]
    before = {path: path.stat().st_mtime_ns for path in ahead}
    materials = loop._prepare(config, tmp_path / "run", resuming=False, other_data=False)
    assert {path: path.stat().st_mtime_ns for path in ahead} == before
    assert [source.directory for source in materials.validation.values()] == ahead[1:]


def test_a_second_run_waits_for_the_first(tmp_path, caplog):
    config = lines_config(write(tmp_path / "data"), cache=str(tmp_path / "cache"))
    list(tokens_ahead.tokenize_ahead(config))
    [finished] = (tmp_path / "cache").glob("jsonl-train-*/tokens")
    shutil.move(finished, tmp_path / "finished")
    with (
        caplog.at_level(logging.INFO, "pid_jax"),
        directory_lock.writing(finished.parent),
    ):
        second = threading.Thread(target=list, args=[tokens_ahead.tokenize_ahead(config)])
        second.start()
        while "another run tokenizes the same data" not in caplog.text:
            assert second.is_alive()
            time.sleep(0.01)
        shutil.move(tmp_path / "finished", finished)
        place = (finished / "records").stat().st_ino
    second.join()
    assert (finished / "records").stat().st_ino == place


SLOW_WRITING = """
import sys, time
from pid_jax.data import token_writing
from pid_jax.data.token_writing import _DigestedFile
from pid_jax.commands import prepare

write = _DigestedFile.write

def written(self, content):
    write(self, content)
    if self.size > 200:
        self._file.flush()
        print("writing", flush=True)
        time.sleep(600)

_DigestedFile.write = written
prepare.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_kill_while_tokens_are_written_leaves_no_cache_and_the_next_run_makes_it(tmp_path):
    write(tmp_path / "data")
    cache = tmp_path / "cache"
    options = [
        f"--config={ROOT / 'tests/helpers/tiny_config.py'}",
        *("--config.data.task=jsonl", f"--config.data.path={tmp_path / 'data'}"),
        f"--config.data.cache={cache}",
    ]
    file = tmp_path / "config.py"
    file.write_text(
        "from tests.helpers import tiny_config\n"
        "def get_config():\n"
        "    config = tiny_config.get_config()\n"
        "    config.data.options = {}\n"
        "    return config\n"
    )
    options[0] = f"--config={file}"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITING, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(cache.glob("*/.building-*/tokens/records"))
    assert caches(cache) == []

    config = configuration.load(file, options[1:])
    config.data.tokens = "disk"
    loop.train(config, tmp_path / "run")
    assert caches(cache) == ["jsonl-train", "jsonl-validation"]
    assert not list(cache.glob("*/.building-*"))
    config.data.tokens = "memory"
    loop.train(config, tmp_path / "memory")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "memory")


def test_auto_is_a_matter_of_the_size_of_the_source(tmp_path, monkeypatch):
    config = lines_config(write(tmp_path / "data"))
    config.data.tokens = "auto"
    size = sum(file.stat().st_size for file in (tmp_path / "data").iterdir())
    for least, expected in ((size, True), (size + 1, False)):
        monkeypatch.setattr(splits, "DISK_BYTES", least)
        split = splits.Split(config, "train", tmp_path)
        assert split.on_disk is expected


def test_evenly_spaced_examples_are_the_same_with_and_without_a_list():
    numbers = list(range(17))
    for chosen in (0, 1, 4, 16, 17, 30):
        expected = list(assembly.evenly_spaced(numbers, chosen))
        assert list(splits.spaced(lambda: numbers, chosen)) == expected
        assert list(splits.spaced(lambda: iter(numbers), chosen)) == expected


def test_a_tokenizer_is_the_same_after_saving_and_loading(tmp_path, text_model):
    from transformers import AutoTokenizer

    tokenizer = text_model.tokenizer
    digest = splits.digest_of_tokenizer(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    loaded(["a text", "another one"], padding=True, truncation=True, max_length=4)
    assert splits.digest_of_tokenizer(loaded) == digest
    loaded.add_tokens(["<new>"])
    assert splits.digest_of_tokenizer(loaded) != digest


@pytest.mark.slow
def test_two_processes_read_what_the_first_wrote(tmp_path, in_memory):
    command = [
        *("train.py", "--config=tests/helpers/tiny_config.py", f"--workdir={tmp_path / 'run'}"),
        *("--config.train.steps=10", "--config.optimizer.schedule=constant"),
        "--config.data.tokens=disk",
    ]
    ends = several_processes.run(command)
    assert [one.status for one in ends] == [0, 0], ends
    ours, theirs = (
        [line for line in map(json.loads, metrics(one).splitlines()) if line["split"] == "train"]
        for one in (tmp_path / "run", in_memory)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["target_tokens"] == other["target_tokens"]
