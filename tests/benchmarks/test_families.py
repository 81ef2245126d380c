"""The benchmark of the families, on models that take seconds."""

import json
from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.workloads import Workload

pytest.importorskip("torch")

STACK = families.MODELS["t5gemma"]["encoder"] | {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
SMALL = {
    "bart-base": families.MODELS["bart-base"]
    | {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": 32,
        "vocab_size": 40,
    },
    "t5gemma": {"model_type": "t5gemma", "encoder": STACK, "decoder": STACK},
}


def test_every_model_is_timed_and_compared_and_what_cannot_run_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(families, "MODELS", SMALL)
    monkeypatch.setattr("benchmarks.workloads.VOCABULARY", 40)
    sizes = {"qa": Workload("", 1, 12, 3, 4, 3), "note": Workload("", 1, 40, 2, 4, 3)}
    monkeypatch.setattr(families, "WORKLOADS", sizes)
    options = ["--workloads", "qa", "note", "--repeats=1", f"--output={tmp_path}"]
    assert families.main([*options, "--models", *SMALL]) == 0
    written = json.loads((tmp_path / "families.json").read_text())
    found = {(one["model"], one["workload"]): one for one in written["measured"]}
    assert len(found) == 4
    assert all(one["tokens_equal"] for one in found.values())
    everything = {"pid_jax PiD", "pid_jax PiE", "transformers PiE", "transformers PiD, broadcast"}
    for place, one in found.items():
        of_bart = place == ("bart-base", "note")
        assert one["left_out" if of_bart else "engines"].keys() == everything
    printed = capsys.readouterr().out
    assert "tokens as in transformers: yes" in printed
    assert "has 40 tokens, but the model has positions for 32" in printed
