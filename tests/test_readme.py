"""What the README says is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    tiny_checkpoint.write(tmp_path / "runs" / "quickstart" / "huggingface")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert (tmp_path / "runs" / "exported" / "model.safetensors").is_file()
    assert scope["north"] != scope["south"]


def test_links_and_named_files_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    named = re.findall(r"\b((?:configs|pid_jax|docs)/[\w./]+)\b", README)
    assert links
    assert named
    for path in [*links, *named]:
        assert (ROOT / path).exists(), path


def commands() -> list[list[str]]:
    """Every command line of the README that runs a program of this project."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].split() for line in lines if line.startswith("python ")]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_commands_have_the_options_that_are_shown(command: list[str]) -> None:
    program = 3 if command[1] == "-m" else 2
    shown = subprocess.run(
        [sys.executable, *command[1:program], "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    ).stdout
    for option in command[program:]:
        name = option.split("=")[0]
        assert name in shown or name.startswith("--config."), name


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "".join(blocks("sh")), re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
