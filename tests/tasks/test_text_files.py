"""How readers open text: the same for all of them."""

import codecs
import gzip
import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from pid_jax import tasks
from pid_jax.errors import UserError
from pid_jax.tasks import jsonl, source_files, text_files
from pid_jax.tasks.source_files import SourceFiles
from tests.helpers import mutations

LINES = [
    {
        "id": f"d{n}",
        "document": f"สวัสดี 👋 {n}",
        "subtasks": [{"id": "q", "prompt": "p", "target": "t"}],
    }
    for n in range(3)
]
TEXT = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES)
BYTES = TEXT.encode()

SAVED_AS = {
    "utf-8": BYTES,
    "byte order mark": codecs.BOM_UTF8 + BYTES,
    "gzip": gzip.compress(BYTES),
    "byte order mark in gzip": gzip.compress(codecs.BOM_UTF8 + BYTES),
    "gzip in two members": gzip.compress(BYTES[:100]) + gzip.compress(BYTES[100:]),
    "Windows line ends": BYTES.replace(b"\n", b"\r\n"),
    "no last line end": BYTES[:-1],
    "empty lines": b"\n \r\n" + BYTES.replace(b"\n", b"\n\n"),
    "files joined": codecs.BOM_UTF8 + BYTES.replace(b"\n", b"\n" + codecs.BOM_UTF8),
}


@pytest.mark.parametrize("content", SAVED_AS.values(), ids=SAVED_AS)
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_json_lines_are_read_however_they_were_saved(tmp_path: Path, content: bytes, name: str):
    (tmp_path / name).write_bytes(content)
    documents = [line["document"] for line in LINES]
    assert [example.document for example in jsonl.read(tmp_path / name)] == documents
    task = tasks.get("jsonl")
    assert [e.document for e in task.examples(tmp_path / name, "train")] == documents


def test_a_packed_file_stands_for_the_file_in_a_directory_and_in_a_zip(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "test.jsonl.gz").write_bytes(gzip.compress(BYTES))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(folder / "test.jsonl.gz", "data/test.jsonl.gz")
    for path in (folder, tmp_path / "data.zip"):
        assert [e.id for e in tasks.get("jsonl").examples(path, "test")] == ["d0", "d1", "d2"]
    article = {"paragraphs": [{"context": "c", "qas": [
        {"id": "1", "question": "?", "answers": [{"text": "c", "answer_start": 0}]}
    ]}]}  # fmt: skip
    squad = codecs.BOM_UTF8 + json.dumps({"data": [article]}).encode()
    (folder / "dev-v1.1.json.gz").write_bytes(gzip.compress(squad))
    assert [e.document for e in tasks.get("squad1").examples(folder, "validation")] == ["c"]


NOT_UTF_8 = {
    codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"): "UTF-16",
    codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"): "UTF-16",
    TEXT.encode("utf-16-le"): "UTF-16",
    TEXT.encode("utf-16-be"): "UTF-16",
    TEXT.encode("utf-32"): "UTF-32",
    gzip.compress(TEXT.encode("utf-16")): "UTF-16",
    b"PK\x03\x04" + BYTES: "a .zip",
    b"BZh9" + BYTES: "bzip2",
    gzip.compress(b"in.jsonl".ljust(257, b"0") + b"ustar"): "a .tar.gz of files: unpack it",
    b"[{}]": "line 1: expected an object .* got a list: JSON lines are objects, one a line",
    gzip.compress(BYTES)[:-9]: "is the download complete",
    gzip.compress(BYTES)[:20] + b"\xff" * 20: "is the download complete",
    '{"id": "café"}'.encode("latin-1"): "line 1: not UTF-8 at byte 12: save the file as UTF-8",
    codecs.BOM_UTF8: "the file is empty",
    b"": "the file is empty",
    gzip.compress(b""): "the file is empty",
}


@pytest.mark.parametrize(("content", "message"), NOT_UTF_8.items(), ids=range(len(NOT_UTF_8)))
def test_what_is_no_utf_8_text_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}.*{message}"):
        list(jsonl.read(path))


def test_damaged_packed_files_are_refused_or_read(tmp_path: Path):
    files = {"test.jsonl.gz": gzip.compress(codecs.BOM_UTF8 + BYTES)}
    task = tasks.get("jsonl")
    outcomes = mutations.read_mutated(
        lambda path: task.examples(path, "test"), files, tmp_path, count=200
    )
    assert outcomes["refused"] > 100


def test_what_unpacks_to_too_much_is_refused_where_files_are_read_whole(tmp_path: Path):
    (tmp_path / "bomb.json").write_bytes(gzip.compress(bytes(300) * 10**5))
    source = SourceFiles(tmp_path / "bomb.json")
    with pytest.raises(UserError, match=r"not UTF-8 but"):
        source.read_json("bomb.json")
    (tmp_path / "bomb.json").write_bytes(gzip.compress(b"[" + b" " * 30_000_000))
    with pytest.raises(UserError, match=r"refused because it unpacks to over [0-9,]+ bytes"):
        source.read_json("bomb.json")
    assert source_files.MAX_EXPANSION == 200


def test_a_million_packed_lines_take_the_memory_of_a_few(tmp_path: Path):
    path = tmp_path / "in.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(b'{"text": "0123456789012345678901234567890123456789"}\n' * 10_000)
    tracemalloc.start()
    with text_files.opened(path) as (_, text):
        assert sum(1 for _ in jsonl.numbered_lines(text, path)) == 10**6
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_pipe_is_read_as_it_is_written():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file, os.fdopen(writing, "wb", buffering=0) as source:
        source.write(codecs.BOM_UTF8 + b'{"a": 1}\n')
        text = text_files.text_of(file, "-")
        assert text.readline() == b'{"a": 1}\n'
        source.write(b"{}\n")
        assert text.readline() == b"{}\n"


def test_a_failing_disk_is_a_user_error():
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    text = text_files.text_of(Failing(BYTES), "in.jsonl")
    with pytest.raises(UserError, match=r"in.jsonl: cannot be read \(Input/output error\)"):
        text.read()
