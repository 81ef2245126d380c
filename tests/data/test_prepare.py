"""Prepared data sets: the examples of the source, and a version for every change of it."""

import json
import pickle
import subprocess
import sys
import zipfile

import grain
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings

from pid_jax import tasks
from pid_jax.atomic_file import new_directory
from pid_jax.data import prepare, prepared
from pid_jax.data.examples import Example, Subtask
from pid_jax.data.prepared import Origin, PreparedExamples
from pid_jax.errors import UserError
from pid_jax.training import assembly, mixed_batches
from tests.helpers import tiny_config
from tests.helpers.prepared_data import (
    ROOT,
    command,
    examples_in,
    from_source,
    line,
    what_is_in,
    write_lines,
)


def written(directory, examples):
    with new_directory(directory) as building:
        prepared.write(building, directory.name, Origin("t", {}, {}), {"train": examples}, {})
    return PreparedExamples(prepared.find(directory, "t", {}), "train")


def test_the_examples_are_those_of_the_source_in_its_order(source, data_dir):
    prepare.prepare("jsonl", source, data_dir)
    for split in tasks.SPLITS:
        assert list(examples_in(data_dir, split)) == from_source(source, split)


def test_every_part_of_an_example_survives(tmp_path):
    examples = [
        Example("none", "", ()),
        Example("é", "a\n\tb \u2028 c\0", (Subtask("", ""), Subtask("q", "?", "", (), ()))),
        Example("\0", "\0", (Subtask("q", "?", "\0", ("", "a|b"), ("x", "\U0001f600")),)),
    ]
    assert list(written(tmp_path / "t" / "1.0.0", examples)) == examples


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
lists = st.none() | st.lists(texts, max_size=3).map(tuple)
subtasks = st.builds(Subtask, texts, texts, st.none() | texts, lists, lists)


@settings(max_examples=20, deadline=None)
@given(
    examples=st.lists(
        st.builds(Example, texts, texts, st.lists(subtasks, max_size=3).map(tuple)),
        min_size=1,
        max_size=4,
    )
)
def test_any_example_survives(tmp_path_factory, examples):
    directory = tmp_path_factory.mktemp("any") / "1.0.0"
    assert list(written(directory, examples)) == examples


def test_grain_and_pickle_take_it_as_a_random_access_source(source, data_dir):
    prepare.prepare("jsonl", source, data_dir)
    examples = examples_in(data_dir, "train")
    expected = from_source(source, "train")
    assert len(examples) == 9
    assert examples[7] == expected[7]
    assert examples[-1] == expected[8]
    assert examples[2:5] == expected[2:5]
    with pytest.raises(IndexError):
        examples[9]
    shuffled = grain.MapDataset.source(examples).shuffle(seed=1)
    assert len(shuffled) == 9
    assert {shuffled[i].id for i in range(9)} == {example.id for example in expected}
    assert list(pickle.loads(pickle.dumps(examples))) == expected


def test_tensorflow_datasets_reads_it_by_itself(source, data_dir):
    data = prepare.prepare("jsonl", source, data_dir)
    builder = tfds.builder_from_directory(data.directory)
    assert (builder.name, str(builder.version)) == ("jsonl", "1.0.0")
    assert builder.info.splits["validation"].num_examples == 3
    record = builder.as_data_source("validation")[1]
    assert record["document"].decode() == "document 1 of validation"
    assert json.loads(record["subtasks"]) == line(1, "validation")["subtasks"]
    assert "tensorflow" not in sys.modules


def test_splits_that_the_source_lacks_are_named(tmp_path, data_dir, caplog):
    source = write_lines(tmp_path / "source", train=2)
    with caplog.at_level("WARNING"):
        data = prepare.prepare("jsonl", source, data_dir)
    assert list(data.splits) == ["train"]
    assert "left out: validation" in caplog.text
    with pytest.raises(UserError, match=r"no split 'test' \(.*no test.jsonl.*\); it has train"):
        examples_in(data_dir, "test")


def test_a_source_without_any_split_is_refused(tmp_path, data_dir):
    with pytest.raises(UserError, match=r"there is no train.jsonl"):
        prepare.prepare("jsonl", write_lines(tmp_path / "source"), data_dir)


def test_only_the_requested_splits_are_prepared_and_must_be_there(tmp_path, data_dir):
    source = write_lines(tmp_path / "source", train=2, test=2)
    assert list(prepare.prepare("jsonl", source, data_dir, splits=["test"]).splits) == ["test"]
    with pytest.raises(UserError, match=r"there is no validation.jsonl"):
        prepare.prepare("jsonl", source, data_dir, splits=["train", "validation"])


def test_a_malformed_source_leaves_nothing(source, data_dir):
    (source / "test.jsonl").write_text(json.dumps(line(0)) + "\nnot JSON\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"test.jsonl, line 2: not JSON"):
        prepare.prepare("jsonl", source, data_dir)
    assert what_is_in(data_dir / "jsonl") == []


def test_the_same_source_is_prepared_once(source, data_dir, caplog):
    first = prepare.prepare("jsonl", source, data_dir)
    with caplog.at_level("INFO"):
        assert prepare.prepare("jsonl", source, data_dir) == first
    assert "1.0.0 is up to date" in caplog.text
    assert what_is_in(data_dir / "jsonl") == ["1.0.0"]


def test_of_a_changed_source_the_next_version_is_made_and_read(source, data_dir, caplog):
    prepare.prepare("jsonl", source, data_dir)
    write_lines(source, test=4)
    (source / "notes.txt").write_text("new")
    with caplog.at_level("INFO"):
        data = prepare.prepare("jsonl", source, data_dir)
    assert data.directory.name == "1.1.0"
    assert "test.jsonl has changed since" in caplog.text
    assert "1.0.0 had no notes.txt" in caplog.text
    assert "train.jsonl" not in caplog.text
    assert len(examples_in(data_dir, "test")) == 4
    assert len(examples_in(data_dir / "jsonl" / "1.0.0", "test")) == 2


def test_of_another_version_of_the_reader_the_next_version_is_made(
    source, data_dir, caplog, monkeypatch
):
    first = prepare.prepare("jsonl", source, data_dir)
    file = first.directory / "metadata.json"
    about = json.loads(file.read_text())
    about["pid_jax"].pop("reader", None)  # as it was before readers had versions: the first
    file.write_text(json.dumps(about))
    assert prepare.prepare("jsonl", source, data_dir) == first
    monkeypatch.setattr(type(tasks.get("jsonl")), "reader_version", 2, raising=False)
    with caplog.at_level("INFO"):
        second = prepare.prepare("jsonl", source, data_dir)
    assert second.directory.name == "1.1.0"
    assert "1.0.0 was created by another version of the task's reader" in caplog.text
    assert prepared.find(data_dir, "jsonl", second.origin.options) == second
    assert prepare.prepare("jsonl", source, data_dir) == second


@pytest.mark.parametrize("name", ["sgd", "multiwoz22"])
def test_readers_that_give_traits_are_of_the_second_version(name):
    assert tasks.reader_version(tasks.get(name)) == 2


def test_a_data_set_inside_its_source_is_no_part_of_it(source):
    first = prepare.prepare("jsonl", source, source / "prepared")
    assert prepare.prepare("jsonl", source, source / "prepared") == first


def test_options_that_change_examples_choose_the_version(tmp_path, data_dir):
    small = {"train_dialogues": 3, "validation_dialogues": 2, "test_dialogues": 2}
    prepare.prepare("synthetic_dst", None, data_dir, options=small)
    prepare.prepare("synthetic_dst", None, data_dir, options=small | {"train_dialogues": 4})
    read = [
        list(examples_in(data_dir, "train", "synthetic_dst", **small | {"train_dialogues": number}))
        for number in (3, 4)
    ]
    assert read[0] == read[1][: len(read[0])] != read[1]
    with pytest.raises(UserError, match=r"nothing there was prepared .*train_dialogues=5.*1\.0\.0"):
        examples_in(data_dir, "train", "synthetic_dst", **small | {"train_dialogues": 5})


def test_options_of_the_score_alone_change_no_examples():
    strict, any_of = (tasks.get("multiwoz24", any_of=value) for value in (False, True))
    assert strict != any_of
    assert tasks.reading_options(strict, {}) == {"prompts": "slot", "closed": False}
    assert tasks.reading_options(any_of, {"any_of": True}) == {"prompts": "slot", "closed": False}


def test_what_is_prepared_for_another_task_is_refused(source, data_dir):
    data = prepare.prepare("jsonl", source, data_dir)
    with pytest.raises(UserError, match=r"prepared for task multiwoz24.* is of jsonl"):
        prepared.find(data.directory, "multiwoz24", {"prompts": "slot"})


def test_a_source_is_not_taken_for_a_data_set(source, tmp_path):
    for path in (None, "", source, source / "train.jsonl", tmp_path / "nowhere"):
        assert prepared.find(path, "jsonl", {}) is None


def test_an_archive_whose_paths_escape_is_refused_by_the_command(tmp_path, data_dir):
    with zipfile.ZipFile(tmp_path / "mwz.zip", "w") as archive:
        archive.writestr("test_dials.json", "[]")
        archive.writestr("../escaped.json", "[]")
    result = subprocess.run(
        command("--task=multiwoz24", f"--source={tmp_path}/mwz.zip", f"--data_dir={data_dir}"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert result.returncode == 2
    assert "'../escaped.json' leads out of the archive" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("escaped.json"))
    assert what_is_in(data_dir / "multiwoz24") == []


def test_training_draws_the_same_batches_from_either(data_dir):
    config = tiny_config.get_config()
    options = config.data.options.to_dict()
    prepare.prepare(config.data.task, None, data_dir, options=options)

    def batches(path):
        config.data.path = str(path)
        examples = assembly.read_examples(config, "train")
        model, _, tokenizer = assembly.new_model(config, examples)
        tokenized = assembly.tokenize(config, examples, model, tokenizer)
        stream = mixed_batches.training_batches(config, [tokenized], model, tokenizer)
        return type(examples), [next(stream) for _ in range(12)]

    kind, from_data_set = batches(data_dir)
    other_kind, expected = batches("")
    assert (kind, other_kind) == (PreparedExamples, list)
    for ours, theirs in zip(from_data_set, expected, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_multiwoz_as_released_comes_back_whole(real_data, data_dir):
    source = real_data / "multiwoz" / "derived_trade_layout" / "mwz2.4.zip"
    data = prepare.prepare("multiwoz24", source, data_dir)
    assert list(data.splits) == ["test"]
    assert set(data.left_out) == {"train", "validation"}
    assert data.origin.sources == {
        "mwz2.4.zip": "c51c95608aa5f7157a3e093ad76a3cc28d6ef0fefac62196f8047269ef855f0e"
    }
    examples = examples_in(data_dir, "test", "multiwoz24")
    assert len(examples) == 7368
    assert list(examples) == from_source(source, "test", "multiwoz24")
