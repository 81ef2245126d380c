"""docs/adapters.md is followed: every command and every block of Python, in their order."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import pages, tiny_checkpoint

PAGE = pages.ROOT / "docs/adapters.md"
# A shorter run than on the page.
SHORTER = (
    "--config.train.steps=4",
    "--config.optimizer.warmup_steps=1",
    "--config.data.batch_size=4",
    "--config.evaluation.documents=4",
    "--config.data.options.train_dialogues=20",
    "--config.data.options.validation_dialogues=4",
)


@pytest.mark.slow
def test_everything_runs_as_it_stands(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    for program in ("train.py", "eval.py"):
        shutil.copy(pages.ROOT / program, tmp_path)
    shutil.copytree(pages.ROOT / "configs", tmp_path / "configs")
    tiny_checkpoint.write(tmp_path / "runs/quickstart/huggingface")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(pages.ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
    }
    monkeypatch.chdir(tmp_path)
    scope = {}
    text = PAGE.read_text(encoding="utf-8").partition("compile-ahead")[0]
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(block, PAGE.name, "exec"), scope)
        for command in block.splitlines() if language == "sh" else ():
            words = shlex.split(command)
            shorter = SHORTER if "train.py" in command else SHORTER[-2:] * ("eval.py" in command)
            ended = subprocess.run(
                [*words, *shorter],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment,
                timeout=900,
            )
            assert ended.returncode == 0, command + ended.stdout + ended.stderr

    theirs, ours = scope["their_model"].eval(), scope["same_model"]
    document, prompt, target = [5, 6, 7, 1], [8, 9], [10, 1]
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.tensor([document]), decoder_input_ids=torch.tensor([[0, 8, 9, 10]])
        ).logits[0, 2:]
    expected = sum(
        float(row[token]) for row, token in zip(logits.log_softmax(-1), target, strict=True)
    )
    [[score]] = ours.score([document], [[prompt]], [[target]])
    np.testing.assert_allclose(score, expected, atol=2e-5)
