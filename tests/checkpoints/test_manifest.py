import hashlib
import json

import pytest

from pid_jax.checkpoints import manifest
from pid_jax.errors import UserError


@pytest.fixture
def written(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "weights").write_bytes(b"0123456789")
    (tmp_path / "marker").write_bytes(b"")
    manifest.write(tmp_path, manifest.entries(tmp_path), about={"note": 1})
    return tmp_path


def problems(directory):
    content = manifest.read(directory)
    assert content is not None
    return manifest.problems(directory, content)


def test_a_manifest_has_the_sizes_and_sha256_digests_of_all_files(written):
    # `printf 0123456789 | sha256sum` and `sha256sum < /dev/null`
    assert manifest.read(written) == (
        {
            "d/weights": (10, "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"),
            "marker": (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        },
        {},
        {"note": 1},
    )
    assert problems(written) == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda file: file.write_bytes(b"01234"), "truncated, 5 bytes instead of 10"),
        (lambda file: file.write_bytes(b"0123456789A"), "11 bytes instead of 10"),
        (lambda file: file.write_bytes(b"0123456798"), "another SHA-256 digest"),
        (lambda file: file.unlink(), "missing"),
        (lambda file: (file.unlink(), file.parent.rmdir()), "missing"),
        (lambda file: (file.unlink(), file.mkdir()), ""),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(written, damage, problem):
    damage(written / "d" / "weights")
    (wrong,) = problems(written)
    assert wrong.startswith("d/weights: ")
    assert problem in wrong


def test_files_that_the_manifest_does_not_name_are_not_verified(written):
    (written / "notes.txt").write_text("mine")
    assert problems(written) == []


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_detected(written):
    path = written / manifest.FILE
    intact = path.read_bytes()
    for at in range(len(intact)):
        content = bytearray(intact)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            read = manifest.read(written)
        except manifest.Damaged:
            continue
        # Other white space: the content is the same.
        assert json.loads(content) == json.loads(intact)
        assert read is not None


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'"text"', b"{}", b"\xff", b"[" * 9999])
def test_what_is_no_manifest_is_damaged(written, content):
    (written / manifest.FILE).write_bytes(content)
    with pytest.raises(manifest.Damaged, match=r"manifest\.json: not a complete manifest"):
        manifest.read(written)


def test_every_truncated_manifest_is_damaged(written):
    intact = (written / manifest.FILE).read_bytes()
    for size in range(len(intact)):
        (written / manifest.FILE).write_bytes(intact[:size])
        with pytest.raises(manifest.Damaged):
            manifest.read(written)


def test_a_manifest_of_a_later_version_is_not_called_damaged(written):
    content = {"version": 2, "files": {}, "also": {}, "about": {}}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (written / manifest.FILE).write_text(json.dumps({**content, "sha256": digest}))
    with pytest.raises(UserError, match="version 2") as error:
        manifest.read(written)
    assert not isinstance(error.value, manifest.Damaged)


def test_a_file_may_have_its_earlier_content_while_it_is_replaced(written):
    later = {"marker": manifest.entry_of(b"later")}
    manifest.write(written, later, also={"marker": manifest.entry_of(b"")})
    assert problems(written) == []
    (written / "marker").write_bytes(b"later")
    assert problems(written) == []
    (written / "marker").write_bytes(b"Later")
    assert problems(written) != []
    with pytest.raises(manifest.Damaged, match="marker: another SHA-256"):
        manifest.check_file(written, "marker")


def test_without_a_manifest_nothing_is_verified(tmp_path):
    assert manifest.read(tmp_path) is None
    manifest.check_file(tmp_path, "anything")
