"""`python -m pid_jax.export`."""

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from pid_jax import directory_lock
from pid_jax.errors import UserError
from pid_jax.export import main
from pid_jax.inference.model import PidModel


def test_transformers_reads_the_export_and_scores_alike(checkpoint: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    main([f"--checkpoint={checkpoint}", f"--output={tmp_path / 'exported'}"])

    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "exported").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    document, prompt, target = "[user] a cheap hotel in the north", "hotel-area", "north"
    documents = tokenizer(document, return_tensors="pt")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    target_ids = [*tokenizer(target, add_special_tokens=False)["input_ids"], 1]
    decoder_ids = torch.tensor([[0, *prompt_ids, *target_ids[:-1]]])
    with torch.no_grad():
        logits = theirs(**documents, decoder_input_ids=decoder_ids).logits
    log_probabilities = logits.log_softmax(-1)[0, len(prompt_ids) :]
    expected = sum(float(log_probabilities[i, token]) for i, token in enumerate(target_ids))

    [[score]] = PidModel.from_pretrained(checkpoint).score([document], [[prompt]], [[target]])
    np.testing.assert_allclose(score, expected, atol=1e-4)


def test_weights_have_their_dtype(checkpoint: Path, tmp_path: Path) -> None:
    PidModel.from_pretrained(checkpoint, dtype="bfloat16").save_pretrained(tmp_path / "half")
    main([f"--checkpoint={tmp_path / 'half'}", f"--output={tmp_path / 'exported'}"])
    for name in ("model.safetensors", "config.json"):
        exported, half = (tmp_path / place / name for place in ("exported", "half"))
        assert exported.read_bytes() == half.read_bytes()


def test_a_directory_in_use_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main([f"--checkpoint={checkpoint}", f"--output={tmp_path}"])
    assert stopped.value.code == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwriting_replaces_the_model_and_leaves_other_files(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for stale in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / stale).write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    main([f"--checkpoint={checkpoint}", f"--output={tmp_path}", "--overwrite"])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("model*index*")) + list(tmp_path.glob("model-*"))
    assert (tmp_path / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("output", ["a_file", "a_file/below"])
def test_a_file_is_no_place_to_export_to(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (tmp_path / "a_file").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main([f"--checkpoint={checkpoint}", f"--output={tmp_path / output}"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "a_file").read_text() == "mine"


def test_a_missing_checkpoint_is_one_sentence_and_makes_no_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([f"--checkpoint={tmp_path / 'nowhere'}", f"--output={tmp_path / 'exported'}"])
    assert stopped.value.code == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_is_one_sentence_and_changes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    output = tmp_path / "exported"
    if there:
        shutil.copytree(checkpoint, output)
        (output / "config.json").write_text('{"mine": 1}')
    before = {path.name: path.read_bytes() for path in output.glob("*")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = [f"--checkpoint={checkpoint}", f"--output={output}", "--overwrite"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: cannot write {output}: File too large; nothing there was changed\n"
    )
    assert {path.name: path.read_bytes() for path in output.glob("*")} == before
    assert output.exists() == there


def test_a_training_run_is_no_place_to_export_to(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"method": "pid", "checkpoint": {}}')
    with pytest.raises(SystemExit):
        main([f"--checkpoint={checkpoint}", f"--output={tmp_path}", "--overwrite"])
    assert "is a training run" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a training run, whose config"):
        PidModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_of_two_exports_at_once_one_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    model = PidModel.from_pretrained(checkpoint)
    with (
        directory_lock.writing(tmp_path),
        pytest.raises(UserError, match="another process is writing there"),
    ):
        model.save_pretrained(tmp_path)


def test_what_a_killed_export_left_behind_is_removed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / ".filling-x" / "files").mkdir(parents=True)
    (tmp_path / ".filling-x" / "files" / "model.safetensors").write_bytes(b"half")
    main([f"--checkpoint={checkpoint}", f"--output={tmp_path}", "--overwrite"])
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in checkpoint.iterdir()
    }
