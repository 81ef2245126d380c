"""Manifests: the sizes and SHA-256 digests of the files of a directory, to detect damage.

`<directory>/manifest.json` names files relative to the directory. It has a digest of itself, so
that damage to the manifest is detected too. Files that it does not name are not verified.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pid_jax.errors import UserError

FILE = "manifest.json"
VERSION = 1
_SHOWN = 3


class Damaged(UserError):
    """Raised for a file that is missing, or whose content is not the one that was written."""


class Entry(NamedTuple):
    """The size and the digest of a file."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """The content of a manifest."""

    files: Mapping[str, Entry]
    """By path, relative to the directory."""
    also: Mapping[str, Entry]
    """Other contents that are valid: those before a replacement that a kill may have prevented."""
    about: Mapping[str, Any]
    """JSON values that the writer of the manifest added."""


def entry_of(content: bytes) -> Entry:
    """The entry of a file with this content."""
    return Entry(len(content), hashlib.sha256(content).hexdigest())


def entries(directory: Path, names: Iterable[str] | None = None) -> dict[str, Entry]:
    """The entries of files in a directory, as they are now.

    names: by default all files at any depth but the manifest. Digests a gigabyte a second and
    thread. Raises OSError for a file that cannot be read.
    """
    if names is None:
        paths = (path for path in directory.rglob("*") if path.is_file())
        names = (path.relative_to(directory).as_posix() for path in paths)
    chosen = sorted(name for name in names if name != FILE)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return dict(
            zip(chosen, threads.map(lambda name: _entry(directory / name), chosen), strict=True)
        )


def write(
    directory: Path,
    files: Mapping[str, Entry],
    *,
    also: Mapping[str, Entry] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes the manifest of a directory, atomically and synced to disk. Raises OSError.

    The arguments are the fields of `Manifest`.
    """
    content = {
        "version": VERSION,
        "files": {name: entry._asdict() for name, entry in files.items()},
        "also": {name: entry._asdict() for name, entry in (also or {}).items()},
        "about": dict(about or {}),
    }
    # Not by pid_jax.atomic_file, whose errors say nothing of the run.
    temporary = directory / f".{FILE}.new"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({**content, "sha256": _digest_of(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / FILE)


def read(directory: Path) -> Manifest | None:
    """The manifest of a directory. None without one. Raises Damaged if its content is damaged."""
    path = directory / FILE
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("sha256")
        if digest != _digest_of(content):
            raise Damaged(f"{path}: the content is not the one that was written")
        if content["version"] != VERSION:
            raise UserError(
                f"{path}: version {content['version']} of manifests, of a later pid_jax: this one "
                f"reads version {VERSION}"
            )
        files, also = (
            {name: Entry(**entry) for name, entry in content[key].items()}
            for key in ("files", "also")
        )
        return Manifest(files, also, content["about"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(f"{path}: not a complete manifest") from error


def problems(directory: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files of a manifest, a sentence each. Empty if all are intact.

    Reads all files, except those of another size.
    """
    sizes = {
        name: _wrong_size(directory / name, entry, manifest.also.get(name))
        for name, entry in manifest.files.items()
    }
    suspects = [name for name, wrong in sizes.items() if wrong is None]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        contents = threads.map(lambda name: _wrong_content(directory, name, manifest), suspects)
        wrongs = {**sizes, **dict(zip(suspects, contents, strict=True))}
    return [f"{name}: {wrong}" for name, wrong in sorted(wrongs.items()) if wrong is not None]


def check_file(directory: Path, name: str) -> None:
    """Raises Damaged if the manifest of a directory has another digest for a file.

    Without a manifest, or an entry in it, the file is not verified.
    """
    manifest = read(directory)
    if manifest is None or name not in manifest.files:
        return
    wrong = problems(directory, Manifest({name: manifest.files[name]}, manifest.also, {}))
    if wrong:
        raise Damaged(f"{directory}: {listed(wrong)}")


def listed(wrong: list[str]) -> str:
    """Problems in one line."""
    rest = f"; and {len(wrong) - _SHOWN} more files" if len(wrong) > _SHOWN else ""
    return "; ".join(wrong[:_SHOWN]) + rest


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(os.fstat(file.fileno()).st_size, digest)


def _wrong_size(path: Path, *allowed: Entry | None) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    sizes = [entry.bytes for entry in allowed if entry is not None]
    if size in sizes:
        return None
    return f"{'truncated, ' if size < min(sizes) else ''}{size} bytes instead of {sizes[0]}"


def _wrong_content(directory: Path, name: str, manifest: Manifest) -> str | None:
    try:
        now = _entry(directory / name)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if now in (manifest.files[name], manifest.also.get(name)):
        return None
    return "another SHA-256 digest than when it was written"


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
