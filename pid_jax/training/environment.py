"""What a run was computed with: code, libraries, devices, command line, configuration.

`<workdir>/environment.json` has one entry for each start of the run that trained a step.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

import pid_jax
from pid_jax.atomic_file import replacing
from pid_jax.distributed import service

FILE = "environment.json"
_LIBRARIES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax"),
    *("orbax-checkpoint", "grain", "numpy", "ml_collections", "transformers", "tokenizers"),
)
_GIT_SECONDS = 10


def record(workdir: Path, config: ConfigDict, mesh: Mesh, start: int) -> None:
    """Adds an entry for a start after step `start`. Earlier entries stay."""
    file = workdir / FILE
    entries = _entries(file)
    entries.append(
        {
            "after_step": start,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "code": code(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "libraries": libraries(),
            "devices": {
                "kind": mesh.devices.flat[0].device_kind,
                "count": mesh.size,
                "processes": service.count(),
                "mesh": dict(mesh.shape),
            },
            "variables": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith(("JAX_", "XLA_", "LIBTPU_"))
            },
            "config": config.to_dict(),
        }
    )
    with replacing(file) as written:
        written.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def code() -> dict[str, Any]:
    """The version of this project. In a git checkout also the commit, and whether files differ."""
    version: dict[str, Any] = {"version": pid_jax.__version__}
    root = Path(pid_jax.__file__).resolve().parents[1]
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain")
        if commit and changes is not None:
            version |= {"commit": commit, "dirty": bool(changes)}
    return version


def libraries() -> dict[str, str]:
    """The versions of installed libraries that change what a run computes."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _entries(file: Path) -> list[Any]:
    """The entries so far. None of them matters to the run, so a damaged file starts anew."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def _git(root: Path, *command: str) -> str | None:
    """What git prints. None if it cannot be run or fails."""
    try:
        ended = subprocess.run(
            ["git", "-C", str(root), *command],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()
