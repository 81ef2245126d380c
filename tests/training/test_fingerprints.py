"""A run goes on with its first data, or on purpose with other data."""

import dataclasses
import json
import logging
import signal

import pytest

from pid_jax import directory_lock
from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.training import compiled, fingerprints, loop
from pid_jax.training.stop_signals import Interrupted, StopSignals
from tests.helpers import tiny_config

FIRST = [
    {"id": f"d{i}", "document": text, "subtasks": [{"id": "q", "prompt": "p", "target": "north"}]}
    for i, text in enumerate(["a cheap hotel", "a dear one", "in the north", "in the south"])
]
OTHER = [{**FIRST[0], "document": "a cheap hostel"}, *FIRST[1:]]


class GoneOn(Exception):
    """Data and model are as they were: the rest would only take time."""


def digest(*examples):
    read = fingerprints.Examples(examples)
    assert list(read) == list(examples)
    return read.digest


def test_every_text_counts_and_so_does_its_place():
    def example(**changes):
        whole = Example("d", "text", (Subtask("q", "prompt", "target"),))
        return dataclasses.replace(whole, **changes)

    changed = [
        example(id="e"),
        example(document="tex"),
        example(subtasks=(Subtask("q", "promptt", "arget"),)),
        example(subtasks=(Subtask("q", "prompt", None),)),
        example(subtasks=()),
    ]
    assert len({digest(example()), *map(digest, changed)}) == 6
    assert digest(*changed[:2]) != digest(*changed[1::-1])


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two steps, and the folder of its data."""
    root = tmp_path_factory.mktemp("root")
    (root / "data").mkdir()
    for split in ("train", "validation"):
        write(root / "data" / f"{split}.jsonl", FIRST)
    loop.train(config(root / "data", 2), root / "run")
    return root


def config(data, steps, **changes):
    config = tiny_config.get_config()
    config.data.task = "jsonl"
    config.data.path = str(data)
    config.data.options = {}
    config.data.negative_rate = 1.0
    config.optimizer.warmup_steps = 1
    config.train.steps = steps
    config.update(changes)
    return config


@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_that_was_replaced_is_refused_by_both_fingerprints(begun, split):
    file = begun / "data" / f"{split}.jsonl"
    write(file, OTHER[:3])
    before = (begun / "run" / "config.json").read_bytes()
    with pytest.raises(UserError) as error:
        loop.train(config(begun / "data", 3), begun / "run")
    write(file, FIRST)
    message = str(error.value)
    name = {"train": "training data", "validation": "validation data"}[split]
    assert f"the {name} was {begun / 'data'} (4 examples, digest " in message
    assert f"is {begun / 'data'} (3 examples, digest " in message
    assert "--other-data" in message
    assert (begun / "run" / "config.json").read_bytes() == before


def test_a_tokenizer_that_was_replaced_is_refused(begun):
    file = begun / "run" / "model" / "tokenizer_config.json"
    content = file.read_bytes()
    file.write_bytes(content + b"\n")
    with pytest.raises(UserError) as error:
        loop.train(config(begun / "data", 3), begun / "run")
    file.write_bytes(content)
    message = str(error.value)
    assert "the model and tokenizer are not those of manifest.json" in message
    assert "model/tokenizer_config.json: " in message
    assert "--other-data" in message


def test_the_same_data_may_lie_elsewhere(begun, monkeypatch):
    def go_on(*_):
        raise GoneOn

    monkeypatch.setattr(compiled, "training_programs", go_on)
    (begun / "data").rename(begun / "moved")
    with pytest.raises(GoneOn):
        loop.train(config(begun / "moved", 3), begun / "run")
    (begun / "moved").rename(begun / "data")


def stop_requested(signals):
    signals.received = signal.SIGTERM
    return signals


@pytest.mark.parametrize("reason", ["warmup", "interrupted"])
def test_a_command_that_takes_no_step_changes_nothing(begun, tmp_path, monkeypatch, reason):
    write(tmp_path / "train.jsonl", OTHER)
    write(tmp_path / "validation.jsonl", FIRST)
    options = config(tmp_path, 3)
    expected, message = UserError, reason
    if reason == "warmup":
        options.optimizer.warmup_steps = 9
    else:
        expected, message = Interrupted, "stopped after step 2"
        monkeypatch.setattr(StopSignals, "__enter__", stop_requested)
    files = [begun / "run" / name for name in ("config.json", "data.json")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(expected, match=message):
        loop.train(options, begun / "run", other_data=True)
    assert [file.read_bytes() for file in files] == before


def test_other_data_is_taken_on_purpose_and_is_the_runs_from_then_on(begun, caplog):
    write(begun / "data" / "train.jsonl", OTHER)
    with caplog.at_level(logging.WARNING, "pid_jax"):
        assert loop.train(config(begun / "data", 3), begun / "run", other_data=True) == 3
    assert "the run continues with the latter" in caplog.text
    write(begun / "data" / "train.jsonl", FIRST)
    with pytest.raises(UserError, match="holds a run with other data: the training data"):
        loop.train(config(begun / "data", 4), begun / "run")


def test_of_an_earlier_versions_run_nothing_is_known_and_nothing_refused(tmp_path):
    read = {"training data": {"path": "a", "split": "train", "examples": 1, "digest": "ab"}}
    fingerprints.check(tmp_path, read, other_data=False)
    (tmp_path / "data.json").write_text("{}")
    fingerprints.check(tmp_path, read, other_data=False)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json: cannot be read .*: delete it to continue"):
        fingerprints.check(tmp_path, read, other_data=False)


def test_another_choice_of_validation_examples_is_no_other_data(tmp_path):
    read = {"validation data": {"split": "test", "chosen": 5, "examples": 5, "digest": "ab"}}
    fingerprints.write(tmp_path, read)
    other = {"validation data": {**read["validation data"], "chosen": 9, "digest": "cd"}}
    fingerprints.check(tmp_path, other, other_data=False)
    other["validation data"]["chosen"] = 5
    with pytest.raises(UserError, match="the validation data was generated"):
        fingerprints.check(tmp_path, other, other_data=False)


def test_a_second_train_in_the_workdir_is_refused(begun):
    with (
        directory_lock.writing(begun / "run"),
        pytest.raises(UserError, match=r"another train\.py uses it"),
    ):
        loop.train(config(begun / "data", 7), begun / "run")
