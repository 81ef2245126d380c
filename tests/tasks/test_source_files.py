import io
import json
import random
import zipfile

import pytest

from pid_jax.errors import UserError
from pid_jax.tasks.source_files import SourceFiles
from tests.helpers import mutations

FILES = {
    "readme.txt": b"\xef\xbb\xbfone\r\ntwo\n",
    "inner/list.json": b' [1, "two", {"three": [3]}]\n',
    "inner/object.json": b'{"a": 1, "b": [2]}',
}


def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unzipped(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture(params=["directory", "zip"])
def source(request, tmp_path):
    if request.param == "zip":
        return SourceFiles(zipped(tmp_path / "data.zip", FILES))
    return SourceFiles(unzipped(tmp_path / "data", FILES))


def test_a_directory_and_a_zip_have_the_same_files(source):
    assert source.names == ("inner/list.json", "inner/object.json", "readme.txt")
    assert source.named("list.json", "readme.txt") == ["inner/list.json", "readme.txt"]
    assert source.only("object.json") == "inner/object.json"
    assert source.where("readme.txt") == f"{source.path}/readme.txt"


def test_a_file_is_read_as_bytes_text_lines_or_json(source):
    assert source.read_bytes("readme.txt") == b"one\r\ntwo\n"
    assert source.read_text("readme.txt") == "one\r\ntwo\n"
    assert source.read_lines("readme.txt") == ["one", "two"]
    assert source.read_json("inner/list.json") == [1, "two", {"three": [3]}]
    assert list(source.read_json_list("inner/list.json")) == [1, "two", {"three": [3]}]
    assert list(source.read_json_object("inner/object.json")) == [("a", 1), ("b", [2])]


def test_a_missing_file_is_answered_by_what_is_there(source):
    with pytest.raises(UserError, match=r"data.*there is no x.json; it contains inner/list.json, "):
        source.only("x.json")
    with pytest.raises(UserError, match=r"there is no x.json"):
        source.read_bytes("x.json")


def test_a_file_that_is_there_twice_is_not_guessed(tmp_path):
    unzipped(tmp_path, {"2.1/data.json": b"{}", "2.4/data.json": b"{}"})
    with pytest.raises(UserError, match=r"more than once: 2.1/data.json, 2.4/data.json"):
        SourceFiles(tmp_path).only("data.json")


def test_a_file_by_itself_is_a_source(tmp_path):
    unzipped(tmp_path, {"list.json": b"[1]"})
    source = SourceFiles(str(tmp_path / "list.json"))
    assert source.names == ("list.json",)
    assert source.read_json("list.json") == [1]
    assert source.where("list.json") == str(tmp_path / "list.json")


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    for path in (None, ""):
        with pytest.raises(UserError, match="path is not set"):
            SourceFiles(path)
    with pytest.raises(UserError, match=r"nowhere: no such file or directory"):
        SourceFiles(tmp_path / "nowhere")


@pytest.mark.parametrize("folder", ["", "inner/"])
def test_a_zip_of_one_file_stands_for_it_in_a_directory(tmp_path, folder):
    zipped(tmp_path / "test.json.zip", {f"{folder}test.json": b"[1]", "__MACOSX/x": b""})
    source = SourceFiles(tmp_path)
    assert source.names == ("test.json", "test.json.zip")
    assert source.read_json("test.json") == [1]
    assert source.where("test.json") == f"{tmp_path}/test.json.zip/{folder}test.json"
    unzipped(tmp_path, {"test.json": b"[2]"})
    assert SourceFiles(tmp_path).read_json("test.json") == [2]


def test_what_systems_leave_behind_is_left_out(tmp_path):
    files = {".git/x.json": b"", "__MACOSX/a.json": b"", "a/.DS_Store": b"", "a/b.json": b"1"}
    unzipped(tmp_path / "data", files)
    assert SourceFiles(tmp_path / "data").names == ("a/b.json",)
    assert SourceFiles(zipped(tmp_path / "data.zip", files)).names == ("a/b.json",)


def test_a_member_that_leads_out_of_its_archive_is_refused(tmp_path):
    for name in ("../a.json", "/a.json", "a/../../a.json", "..\\a.json"):
        with pytest.raises(UserError, match="leads out of the archive"):
            SourceFiles(zipped(tmp_path / "data.zip", {name: b"[]"}))


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(mutations.bomb({}, "a.json", random.Random(0)))
    with pytest.raises(UserError, match=r"data.zip/a.json: refused because it unpacks from 4,"):
        SourceFiles(path).read_bytes("a.json")


def test_damage_is_reported_however_the_file_is_read(tmp_path):
    path = zipped(tmp_path / "data.zip", {"a.json": b"[1, 2, 3]" * 9}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"[1, 2, 3]", b"[1, 2, 4]", 1))
    source = SourceFiles(path)
    with pytest.raises(UserError, match=r"data.zip/a.json: cannot be read \(Bad CRC-32"):
        source.read_bytes("a.json")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"data.zip: cannot be read .* download complete"):
        SourceFiles(path)


def test_text_that_is_not_utf8_is_an_error(tmp_path):
    unzipped(tmp_path, {"a.json": b'["\xff"]'})
    source = SourceFiles(tmp_path)
    with pytest.raises(UserError, match=r"a.json: not UTF-8 at byte 3"):
        source.read_json("a.json")
    with pytest.raises(UserError, match=r"a.json: not UTF-8 somewhere after character 0"):
        list(source.read_json_list("a.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a list"),
        (b"{}", "expected a list"),
        (b"[1, 2", "expected ',' or ']' at character 6"),
        (b"[1 2]", "expected ',' or ']' at character 4"),
        (b"[1, ]", "Expecting value at character 5"),
        (b"[1] 2", "more after the end at character 5"),
        (b"[" * 100_000, "not JSON"),
        (b'["a', "Unterminated string starting at at character 2"),
    ],
)
def test_json_that_is_broken_is_located(tmp_path, content, message):
    unzipped(tmp_path, {"a.json": content})
    with pytest.raises(UserError, match=f"a.json: .*{message}"):
        list(SourceFiles(tmp_path).read_json_list("a.json"))
    if content != b"{}":
        with pytest.raises(UserError, match=r"a.json: not JSON"):
            SourceFiles(tmp_path).read_json("a.json")


def test_a_key_that_comes_twice_is_an_error(tmp_path):
    unzipped(tmp_path, {"a.json": b'{"a": 1, "b": 2, "a": 3}'})
    with pytest.raises(UserError, match=r"a.json: the key 'a' occurs twice"):
        list(SourceFiles(tmp_path).read_json_object("a.json"))


def test_long_json_is_read_across_the_pieces_it_comes_in(tmp_path, monkeypatch):
    monkeypatch.setattr("pid_jax.tasks.json_stream._FIRST_BYTES", 1)
    chance = random.Random(0)
    for _ in range(50):
        values = [
            chance.choice([chance.randrange(10**9), "é" * chance.randrange(9), [[]], {"ü": 1.5}])
            for _ in range(chance.randrange(9))
        ]
        text = json.dumps(
            values, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1])
        )
        unzipped(tmp_path, {"a.json": text.encode()})
        assert list(SourceFiles(tmp_path).read_json_list("a.json")) == values
        keyed = {f"k{number}": value for number, value in enumerate(values)}
        unzipped(tmp_path, {"a.json": json.dumps(keyed).encode()})
        assert dict(SourceFiles(tmp_path).read_json_object("a.json")) == keyed


def test_long_json_is_read_only_as_far_as_it_is_used(tmp_path):
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size=-1):
            self.taken += size
            return super().read(size)

    from pid_jax.tasks.json_stream import JsonStream

    file = Counting(b"[" + b'"0123456789", ' * 10**6 + b"0]")
    assert next(JsonStream(file, "a.json").elements()) == "0123456789"
    assert file.taken <= 2**20


def test_mutated_files_are_refused_or_read(tmp_path):
    def read(path):
        source = SourceFiles(path)
        yield source.read_lines(source.only("readme.txt"))
        yield from source.read_json_list(source.only("list.json"))
        yield from source.read_json_object(source.only("object.json"))
        yield source.read_json("inner/list.json")

    outcomes = mutations.read_mutated(read, FILES, tmp_path)
    assert outcomes["refused"] > 200
    assert outcomes["read"] > 50
