"""README: short, and all that it shows works."""

from pathlib import Path

import pytest

from tests.helpers import pages, tiny_checkpoint

README = pages.ROOT / "README.md"


def test_it_has_at_most_130_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_the_example_scores_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint.write(tmp_path / "runs/quickstart/huggingface")
    monkeypatch.chdir(tmp_path)
    [example] = pages.blocks(README, "python")
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert len(scope["answers"]) == 3  # type: ignore[arg-type]
    assert scope["north"] != scope["south"]


def test_it_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    for page in ("CONTRIBUTING.md", "CHANGELOG.md", "docs/api.md", "docs/quickstart.md"):
        assert f"]({page})" in text
