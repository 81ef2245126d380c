"""What the tests of the command share."""

import json
from pathlib import Path

import pytest

from pid_jax.inference.model import PidModel
from tests.helpers.predict_command import LINES, Model


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for a checkpoint: it is never loaded."""
    monkeypatch.setattr(PidModel, "from_pretrained", lambda path, **_: Model())
    checkpoint = tmp_path_factory.mktemp("no_model")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    return checkpoint
