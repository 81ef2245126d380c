"""docs/your_own_task.md, followed as a new user would."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pid_jax.tasks import jsonl

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/your_own_task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_line_that_is_shown_is_read() -> None:
    [line] = [text for language, text in BLOCKS if language == "json"]
    example = jsonl.parse_line(line, "page", 1, require_target=True)
    assert [subtask.target for subtask in example.subtasks] == ["1000", "late"]


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:configs|pid_jax|docs)/[\w./]*)`", PAGE)
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_everything_runs_as_it_stands(tmp_path: Path) -> None:
    # A checkout of one's own, as far as these commands see it.
    for program in ("train.py", "eval.py"):
        shutil.copy(ROOT / program, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
    }
    printed = ""
    for language, text in BLOCKS:
        if language == "python":
            file = re.match(r"# (\w+\.py)\n", text)
            assert file is not None, text
            (tmp_path / file[1]).write_text(text, encoding="utf-8")
        for command in text.splitlines() if language == "sh" else ():
            result = subprocess.run(
                command.split(),
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment,
                timeout=280,
            )
            assert result.returncode == 0, command + result.stdout + result.stderr
            printed += result.stdout

    assert "100 tickets, {'tickets_right': 1.0}" in printed
    assert re.search(r"tickets_right +\d\.\d+", printed)
    scores = json.loads((tmp_path / "runs/mine/test/metrics.json").read_text())["metrics"]
    assert scores.keys() == {"exact_match", "digits", "numbers"}
    assert scores["numbers"] == 20
    answers = (tmp_path / "runs/mine/answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 20
    for line in answers:
        kind = json.loads(line)["subtasks"][1]
        assert kind["prediction"] in kind["allowed"]
