"""The workflow, the hooks and the container name things that exist."""

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent.parent


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_make_targets_that_exist_on_both_versions_of_python() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = jobs["checks"]["strategy"]["matrix"]["target"]
    assert targets == ["lint", "test", "quickstart"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for job in jobs.values():
        assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]


def test_hooks_use_the_tools_of_the_virtual_environment() -> None:
    [repository] = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"].split()[0] for hook in repository["hooks"]] == [
        ".venv/bin/ruff",
        ".venv/bin/ruff",
        ".venv/bin/mypy",
    ]


def test_files_that_the_image_copies_exist_and_are_sent_to_the_builder() -> None:
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    names = " ".join(copied).split()
    assert names
    for name in names:
        assert list(ROOT.glob(name)), name
        assert any(Path(name).match(pattern) or name == pattern for pattern in sent), name
