"""Token ids on disk are those in memory, and damage to them is an error."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.data import token_files, token_writing
from pid_jax.data.examples import Example, Subtask
from pid_jax.data.limits import Limits
from pid_jax.data.token_files import DamagedTokens, StoredTokens, verify
from pid_jax.data.tokenizing import TokenizedExamples
from pid_jax.errors import UserError
from tests.helpers.number_examples import (
    END,
    NONE,
    WIDE,
    NumberTokenizer,
    evaluation,
    lengths_of,
    source_of,
    take,
    training,
)

NUMBERS = st.text("0123456789 ", max_size=4)
NARROW = Limits(document_tokens=5, prompt_tokens=2, target_tokens=3, truncation_side="left")


def text_of(ids):
    """As a tokenizer that cannot write 13."""
    return " ".join("?" if token == 13 else str(token) for token in ids)


def numbered_examples(lengths, subtasks):
    """Example n has `subtasks(n)` subtasks. Every fourth has no target."""
    return [
        Example(
            f"example {n} é",
            " ".join(str(1000 + n + i) for i in range(length)),
            tuple(
                Subtask(
                    f"{s}",
                    f"{100 + s} {n} 3",
                    None if (n + s) % 4 == 3 else f"{200 + s} 13 {n}",
                    ("a",) if s == 1 else None,
                )
                for s in range(subtasks(n))
            ),
        )
        for n, length in enumerate(lengths)
    ]


def both(directory, examples, limits=WIDE, vocabulary=70_000):
    options = {"end_token_id": END, "text_of": text_of}
    directory.mkdir()
    token_writing.write(
        directory,
        iter(examples),
        NumberTokenizer(),
        limits,
        vocabulary=vocabulary,
        digest=lambda: "d1",
        **options,
    )
    memory = TokenizedExamples(examples, NumberTokenizer(), limits, **options)
    return StoredTokens(directory), memory


@pytest.mark.parametrize("limits", [WIDE, NARROW], ids=["whole", "cut"])
@pytest.mark.parametrize("vocabulary", [5000, 70_000], ids=["16 bits", "32 bits"])
def test_what_is_on_disk_is_what_is_in_memory(tmp_path, limits, vocabulary):
    examples = numbered_examples(lengths_of(60, 30), lambda n: n % 5)
    stored, memory = both(tmp_path / "tokens", examples, limits, vocabulary)
    assert stored.statistics == memory.statistics
    assert stored.statistics.targets.first is not None
    assert stored.statistics.without_subtask.first == "example 0 é"
    assert (len(stored), stored.count, stored.digest) == (60, 60, "d1")
    assert stored.leading == memory.leading
    assert np.array_equal(stored.document_lengths[:], memory.document_lengths)
    assert list(stored.subtask_counts) == memory.subtask_counts.tolist()
    wanted = [200, 13, 2, END]
    for n in range(60):
        assert stored[n] == memory[n]
        chosen = np.arange(n % 5)[::-2]
        assert stored.select(n, chosen) == memory.select(n, chosen)
        for ours, theirs in zip(
            stored.subtask_lengths(n, chosen), memory.subtask_lengths(n, chosen), strict=True
        ):
            assert np.array_equal(ours, theirs)
        assert np.array_equal(stored.targets_equal(n, wanted), memory.targets_equal(n, wanted))
    verify(stored.directory)


def test_columns_are_read_as_arrays_are(tmp_path):
    stored, memory = both(tmp_path / "tokens", numbered_examples(lengths_of(20, 30), lambda n: 2))
    ours, theirs = stored.document_lengths, memory.document_lengths
    for index in (3, -1, slice(4, 9), slice(None, None, 3), np.array([7, 0, 7]), np.array([], int)):
        assert np.array_equal(ours[index], theirs[index])
    assert len(ours) == 20


@given(
    st.lists(
        st.tuples(st.text(), st.lists(st.integers(0, 99)), st.lists(st.tuples(NUMBERS, NUMBERS))),
        max_size=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_any_example_comes_back(tmp_path_factory, content):
    examples = [
        Example(name, " ".join(map(str, words)), tuple(Subtask("s", *pair) for pair in pairs))
        for name, words, pairs in content
    ]
    stored, memory = both(tmp_path_factory.mktemp("any") / "tokens", examples)
    assert [stored[n] for n in range(len(stored))] == list(memory)
    assert stored.statistics == memory.statistics


def written(tmp_path, source):
    """The same numbers as `source_of`, on disk."""
    examples = [
        Example(
            example.id,
            " ".join(map(str, example.document[:-1])),
            tuple(
                Subtask(f"{s}", " ".join(map(str, prompt)), " ".join(map(str, target[:-1])))
                for s, (prompt, target) in enumerate(
                    zip(example.prompts, example.targets, strict=True)
                )
            ),
        )
        for example in source
    ]
    return both(tmp_path / "tokens", examples)[0]


def test_batches_are_those_of_memory(tmp_path):
    memory = source_of(lengths_of(30), 6, negatives=3)
    disk = written(tmp_path, memory)
    options = {"max_prompts": 4, "negative_target": NONE, "negative_rate": 0.3}
    for ours, theirs in (
        (take(training(disk, **options), 20), take(training(memory, **options), 20)),
        (list(evaluation(disk)), list(evaluation(memory))),
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_process_reads_the_lengths_of_all_documents_and_the_tokens_of_its_own(
    tmp_path, monkeypatch
):
    memory = source_of([1000] * 64, 3)
    disk = written(tmp_path, memory)
    records = disk._records
    sizes = []
    read = type(records).read
    monkeypatch.setattr(
        type(records),
        "read",
        lambda self, start, size: (
            (sizes.append(size) if self is records else None) or read(self, start, size)
        ),
    )
    options = {"batch_size": 8, "packing": True}
    ours = take(training(disk, own_rows=lambda _: np.array([3]), **options), 8)
    whole = take(training(memory, **options), 8)
    for one, other in zip(ours, whole, strict=True):
        assert all(np.array_equal(a, b[3:4]) for a, b in zip(one, other, strict=True))
    assert sum(size > 1000 for size in sizes) == 8


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_disk_that_cannot_be_read_is_no_damage(stored, monkeypatch, error):
    def fail(path, flags):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(token_files.os, "open", fail)
    with pytest.raises(UserError, match=f"cannot be read .{os.strerror(error)}") as raised:
        StoredTokens(stored.directory)
    assert not isinstance(raised.value, DamagedTokens)


def test_threads_read_the_same(tmp_path):
    stored, memory = both(tmp_path / "tokens", numbered_examples(lengths_of(50, 30), lambda n: 3))
    order = np.random.default_rng(0).integers(50, size=2000).tolist()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(stored.__getitem__, order)) == [memory[n] for n in order]


@pytest.fixture
def stored(tmp_path):
    return both(tmp_path / "tokens", numbered_examples(lengths_of(40, 30), lambda n: 3))[0]


@pytest.mark.parametrize("name", ["index", "records", "tokens.json"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "longer"])
def test_a_file_of_another_size_is_refused_when_opened(stored, name, damage):
    file = stored.directory / name
    content = file.read_bytes()
    match damage:
        case "removed":
            file.unlink()
        case "longer":
            file.write_bytes(content + b"x")
        case _:
            file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(DamagedTokens, match=rf"{stored.directory}: damaged \({name}.*delete it"):
        StoredTokens(stored.directory)


@pytest.mark.parametrize("name", ["index", "records"])
def test_every_flipped_byte_is_noticed_where_it_is_read(stored, name):
    """Bytes of one example: no other token is ever read, and no other example is affected."""
    file = stored.directory / name
    content = bytearray(file.read_bytes())
    place = stored.index.place(7)
    start, size = (7 * 24, 24) if name == "index" else (place.start, place.bytes)
    for place in range(start, start + size):
        content[place] ^= 0x10
        file.write_bytes(content)
        damaged = StoredTokens(stored.directory)
        with pytest.raises(DamagedTokens, match=rf"damaged \({name}: .*example 7 has changed"):
            _ = damaged[7]
        assert damaged[6] == stored[6]
        content[place] ^= 0x10
    file.write_bytes(content)
    assert StoredTokens(stored.directory)[7].id == "example 7 é"


def test_examples_in_each_others_places_are_noticed(stored):
    file = stored.directory / "index"
    content = file.read_bytes()
    file.write_bytes(content[24:48] + content[:24] + content[48:])
    with pytest.raises(DamagedTokens, match="the entry of example 0 has changed"):
        _ = StoredTokens(stored.directory).document_lengths[0]


def test_a_changed_description_is_refused(stored):
    file = stored.directory / "tokens.json"
    about = json.loads(file.read_text())
    about["statistics"]["longest_document"] += 1
    file.write_text(json.dumps(about))
    with pytest.raises(DamagedTokens, match=r"tokens\.json has changed, or has another format"):
        StoredTokens(stored.directory)


def test_verifying_reads_everything(stored, tmp_path):
    verify(stored.directory)
    copy = tmp_path / "copy"
    shutil.copytree(stored.directory, copy)
    file = copy / "records"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedTokens, match="records has changed"):
        verify(copy)


def test_limits_that_leave_no_text_are_refused(tmp_path):
    with pytest.raises(UserError, match="document_tokens is 1, which leaves no space for text"):
        token_writing.write(
            tmp_path, [], NumberTokenizer(), Limits(1, 9, 9), vocabulary=10, end_token_id=END
        )


def test_texts_that_were_forgotten_are_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(token_writing, "_MOST_CHARACTERS", 10)
    monkeypatch.setattr(token_writing, "_EXAMPLES_AT_ONCE", 3)
    stored, memory = both(tmp_path / "tokens", numbered_examples(lengths_of(20, 9), lambda n: 3))
    assert [stored[n] for n in range(20)] == list(memory)
    assert stored.statistics == memory.statistics


def test_the_format_of_this_version_is_required(stored, monkeypatch):
    monkeypatch.setattr(token_files, "FORMAT", token_files.FORMAT + 1)
    with pytest.raises(DamagedTokens, match=r"tokens\.json has changed, or has another format"):
        StoredTokens(stored.directory)


def test_statistics_of_another_version_are_refused(stored):
    about = {**stored.about, "statistics": stored.statistics.to_json()}
    del about["statistics"]["longest_prompt"]
    token_files.write_about(stored.directory, about)
    with pytest.raises(DamagedTokens, match=r"tokens\.json: .*longest_prompt"):
        StoredTokens(stored.directory)
