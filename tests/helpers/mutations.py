"""Damaged copies of a small data set, for tests that a reader answers each with a UserError.

    outcomes = mutations.read_mutated(read, {"train.json": b"[...]"}, tmp_path)
    assert outcomes["refused"] > 250

Any other exception fails the test, which then names the mutation and its number.
"""

import io
import json
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pid_jax.errors import UserError

MUTATIONS = 500

WRONG_VALUES = (
    None, True, 0, -7, 1.5, float("nan"), 10**30, "", " ", "none", "\ud800", "\u0000", "ünïcode",
    "x" * 5000, [], {}, [[]], [None], {"": None}, ["a", "b"],
)  # fmt: skip


def read_mutated(
    read: Callable[[Path], Iterable[Any]],
    files: Mapping[str, bytes],
    directory: Path,
    *,
    count: int = MUTATIONS,
    seed: int = 0,
) -> Counter[str]:
    """How many of `count` damaged copies of `files` were "refused" by a UserError, or "read".

    `read` gets a directory or a .zip, and what it returns is gone through. Each refusal must name
    the source; nothing may be written.
    """
    outcomes: Counter[str] = Counter()
    for number in range(count):
        chance = random.Random(f"{seed}:{number}")
        place = directory / "mutated"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        mutation, path = _write(files, place, chance)
        before = _listing(directory)
        try:
            refusal = _refusal(read, path)
        except Exception as error:
            raise AssertionError(f"mutation {number} ({mutation}): {error!r}") from error
        outcomes["refused" if refusal else "read"] += 1
        assert refusal is None or str(place) in refusal, (
            f"mutation {number} ({mutation}): {refusal}"
        )
        assert _listing(directory) == before, f"mutation {number} ({mutation}) wrote a file"
    return outcomes


def _refusal(read: Callable[[Path], Iterable[Any]], path: Path) -> str | None:
    try:
        for _ in read(path):
            pass
    except UserError as error:
        return str(error)
    return None


def mutated(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """The name of a mutation, and a file so damaged: JSON by its values, other text by lines."""
    if chance.random() < 0.4:
        mutation = chance.choice(_BYTES)
        return mutation.__name__, mutation(content, chance)
    try:
        value = json.loads(content)
    except ValueError:
        return "lines", _lines(content, chance)
    return "json", _json(value, chance)


def _write(files: Mapping[str, bytes], place: Path, chance: random.Random) -> tuple[str, Path]:
    damaged = dict(files)
    name = chance.choice(sorted(files))
    how = chance.random()
    if how < 0.2:
        mutation = chance.choice(_ARCHIVES)
        path = place / "data.zip"
        path.write_bytes(mutation(damaged, name, chance))
        return mutation.__name__, path
    if how < 0.25:
        del damaged[name]
        mutation_name = "missing"
    else:
        mutation_name, damaged[name] = mutated(damaged[name], chance)
    if chance.random() < 0.5:
        path = place / "data.zip"
        path.write_bytes(_archive(damaged))
    else:
        path = place / "data"
        path.mkdir()
        for file, content in damaged.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(content)
    return f"{mutation_name} of {name}", path


def _listing(directory: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in directory.rglob("*"))


# Mutations of bytes.


def _truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))] if content else b""


def _flipped(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 5, 50))):
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def _not_utf8(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    return content[:at] + chance.choice((b"\xff", b"\xc3(", b"\xed\xa0\x80")) + content[at:]


def _utf16(content: bytes, chance: random.Random) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


def _empty(content: bytes, chance: random.Random) -> bytes:
    return chance.choice((b"", b" \n", b"\x00", b"null", b"[]", b"{}", b"0", b'""'))


def _deep(content: bytes, chance: random.Random) -> bytes:
    return chance.choice((b"[", b'{"a":', b'[{"a":')) * 50_000


def _web_page(content: bytes, chance: random.Random) -> bytes:
    return b"<!DOCTYPE html><html><body>404: Not Found</body></html>\n"


def _pointer(content: bytes, chance: random.Random) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:355\nsize 276572745\n"


def _repeated(content: bytes, chance: random.Random) -> bytes:
    return content + content


_BYTES = (
    _truncated, _truncated, _flipped, _flipped, _not_utf8, _utf16, _empty, _deep, _web_page,
    _pointer, _repeated,
)  # fmt: skip


# Mutations of values.


def _json(value: Any, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 3))):
        value = _changed(value, chance)
    text = json.dumps(value)
    if chance.random() < 0.1 and isinstance(value, dict) and value:
        key, repeated = chance.choice(sorted(value.items(), key=lambda item: item[0]))
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(repeated)}}}"
    return text.encode()


def _changed(value: Any, chance: random.Random) -> Any:
    """`value` with one change, in itself or anywhere below."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.08:
        return chance.choice(WRONG_VALUES)
    keys = sorted(value) if isinstance(value, dict) else range(len(value))
    key = chance.choice(keys)
    changed: Any = value.copy()
    how = chance.random()
    if how < 0.6:
        changed[key] = _changed(value[key], chance)
    elif how < 0.75:
        del changed[key]
    elif isinstance(changed, dict):
        changed[chance.choice((key.upper(), "x", "", key + "-1"))] = changed.pop(key)
    else:
        changed.insert(chance.randrange(len(changed) + 1), value[key])
    return changed


def _lines(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    at = chance.randrange(len(lines))
    how = chance.random()
    if how < 0.2:
        del lines[at]
    elif how < 0.4:
        lines.insert(chance.randrange(len(lines) + 1), lines[at])
    elif how < 0.6:
        lines[at] = lines[at].replace(chance.choice((b",", b'"', b"\n", b":", b"e")), b"")
    else:
        try:
            lines[at] = _json(json.loads(lines[at]), chance) + b"\n"
        except ValueError:
            lines[at] = _flipped(lines[at], chance)
    return b"".join(lines)


# Mutations of archives.


def _archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _truncated_zip(files: Mapping[str, bytes], name: str, chance: random.Random) -> bytes:
    return _truncated(_archive(files), chance)


def _flipped_zip(files: Mapping[str, bytes], name: str, chance: random.Random) -> bytes:
    return _flipped(_archive(files), chance)


@cache
def _bomb_member() -> bytes:
    return b" " * 2**22


def bomb(files: Mapping[str, bytes], name: str, chance: random.Random) -> bytes:
    """One file of 4 MiB packed into 4 KiB."""
    return _archive({**files, name: _bomb_member()})


def _lying_bomb(files: Mapping[str, bytes], name: str, chance: random.Random) -> bytes:
    """It declares a small size."""
    content = bomb({}, name, chance)
    return content.replace((2**22).to_bytes(4, "little"), (1000).to_bytes(4, "little"))


def _encrypted(files: Mapping[str, bytes], name: str, chance: random.Random) -> bytes:
    content = bytearray(_archive({name: files[name]}))
    content[6] |= 1  # general purpose flags in the local header, ...
    content[content.index(b"PK\x01\x02") + 8] |= 1  # ... and in the directory
    return bytes(content)


def _escaping(files: Mapping[str, bytes], name: str, chance: random.Random) -> bytes:
    prefix = chance.choice(("../", "/", "a/../../", "..\\"))
    return _archive({**files, prefix + name: files[name]})


def _twice(files: Mapping[str, bytes], name: str, chance: random.Random) -> bytes:
    return _archive({**files, f"again/{name}": files[name]})


_ARCHIVES = (_truncated_zip, _flipped_zip, bomb, _lying_bomb, _encrypted, _escaping, _twice)
