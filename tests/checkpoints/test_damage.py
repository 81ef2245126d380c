"""A damaged run is never used: training resumes from an intact checkpoint, all else refuses."""

import json
import logging
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from pid_jax.checkpoints import manifest
from pid_jax.checkpoints.contents import saved_steps
from pid_jax.checkpoints.trained_model import load_params
from pid_jax.commands import evaluate, predict
from pid_jax.commands import export as export_command
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.training import loop, run_checks
from tests.helpers import tiny_config

LAST, BEFORE = 12, 10


def config(steps=LAST):
    config = tiny_config.get_config()
    config.train.steps = steps
    config.optimizer.schedule = "constant"  # independent of the number of steps
    config.checkpoint.every_steps = 2
    config.evaluation.every_steps = 2
    config.evaluation.documents = 4
    config.data.options.validation_dialogues = 2
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run with checkpoints at steps 10 and 12, the later of them the best."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    loop.train(config(), workdir)
    assert saved_steps(workdir) == [BEFORE, LAST]
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Flips a byte in the middle and 15 others after it, if there are."""
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 2, min(len(content) // 2 + 16, len(content))):
        content[at] ^= 0xFF
    path.write_bytes(content)


def flip_last_digit(path):
    """JSON stays valid, with another number or text."""
    content = bytearray(path.read_bytes())
    at = max(i for i, byte in enumerate(content) if chr(byte).isdigit())
    content[at] = ord("1") if content[at] != ord("1") else ord("2")
    path.write_bytes(content)


def unlink(path):
    path.unlink()


def largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size).relative_to(folder).as_posix()


WEIGHTS = "largest"
DAMAGE_TO_CHECKPOINT = [
    (truncate, WEIGHTS),
    (unlink, WEIGHTS),
    (flip, WEIGHTS),
    (flip, "state/manifest.ocdbt"),
    (truncate, "state/_METADATA"),
    (flip_last_digit, "state/_sharding"),
    (flip_last_digit, "data/process_0-of-1.json"),
    (unlink, "data/process_0-of-1.json"),
    (flip_last_digit, "metrics/metrics"),
    (truncate, "metrics/metrics"),
    (unlink, "metrics/metrics"),
    (unlink, "commit_success.txt"),
    (unlink, "state/commit_success.txt"),
    (flip, "_CHECKPOINT_METADATA"),
    (unlink, "_CHECKPOINT_METADATA"),
    (unlink, manifest.FILE),
    (truncate, manifest.FILE),
    (flip_last_digit, manifest.FILE),
    (lambda path: shutil.rmtree(path), "state"),
    (lambda path: shutil.rmtree(path), "data"),
]
DAMAGE_TO_DESCRIPTION = [
    (truncate, "config.json"),
    (unlink, "config.json"),
    (flip, "config.json"),
    (flip_last_digit, "config.json"),
    (truncate, "model/config.json"),
    (unlink, "model/config.json"),
    (flip_last_digit, "model/config.json"),
    (truncate, "model/tokenizer.json"),
    (unlink, "model/tokenizer.json"),
    (flip_last_digit, "model/tokenizer.json"),
    (flip_last_digit, "model/generation_config.json"),
    (unlink, "model/generation_config.json"),
    (truncate, manifest.FILE),
    (unlink, manifest.FILE),
]


def name(damage):
    how, file = damage
    return f"{getattr(how, '__name__', '').strip('<>')}-{file}"


@pytest.fixture(params=DAMAGE_TO_CHECKPOINT, ids=name)
def damaged(copy, request):
    """A copy with a damaged last checkpoint."""
    how, file = request.param
    last = copy / "checkpoints" / str(LAST)
    how(last / (largest(last) if file == WEIGHTS else file))
    return copy


@pytest.fixture(params=DAMAGE_TO_DESCRIPTION, ids=name)
def misdescribed(copy, request):
    """A copy with damage beside its checkpoints, and the file."""
    how, file = request.param
    how(copy / file)
    return copy, file


def refusal(action, *arguments):
    with pytest.raises(UserError) as error:
        action(*arguments)
    return str(error.value)


def test_a_damaged_checkpoint_is_refused_by_loading_it_and_an_intact_one_is_named(damaged):
    last, before = (damaged / "checkpoints" / str(step) for step in (LAST, BEFORE))
    for path in (damaged, last):
        message = refusal(PidModel.from_pretrained, path)
        assert str(last) in message
        assert re.search(rf"newest intact(?: checkpoint is|,) {re.escape(str(before))}", message)
    assert PidModel.from_pretrained(before).tokenizer is not None


def test_training_resumes_from_the_newest_intact_checkpoint_and_names_the_damage(damaged, caplog):
    with caplog.at_level(logging.WARNING, "pid_jax"):
        assert run_checks.last_step(damaged) == BEFORE
    assert f"{damaged / 'checkpoints' / str(LAST)} is damaged: " in caplog.text


@pytest.mark.parametrize(
    ("how", "file"),
    [
        (flip, WEIGHTS),
        (unlink, "data/process_0-of-1.json"),
        pytest.param(truncate, WEIGHTS, marks=pytest.mark.slow),
        pytest.param(unlink, WEIGHTS, marks=pytest.mark.slow),
        pytest.param(flip, "metrics/metrics", marks=pytest.mark.slow),
        pytest.param(unlink, manifest.FILE, marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_bit_for_bit_without_its_last_checkpoint(copy, run, caplog, how, file):
    damaged, last = copy, copy / "checkpoints" / str(LAST)
    how(last / (largest(last) if file == WEIGHTS else file))
    with caplog.at_level(logging.INFO, "pid_jax"):
        assert loop.train(config(), damaged) == LAST
    assert f"{last} is damaged: " in caplog.text
    assert f"resumed after step {BEFORE}" in caplog.text
    assert (damaged / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    jax.tree.map(
        np.testing.assert_array_equal, load_params(damaged, "last"), load_params(run, "last")
    )
    # The damaged one is not deleted, and not taken for one of the run's checkpoints.
    assert (damaged / "checkpoints" / f"damaged-{LAST}").is_dir()
    assert saved_steps(damaged) == saved_steps(run)


def test_a_run_without_an_intact_checkpoint_is_refused_and_unchanged(copy):
    for step in (BEFORE, LAST):
        truncate(copy / "checkpoints" / str(step) / "state" / "_METADATA")
    before = sorted(copy.rglob("*"))
    message = refusal(loop.train, config(), copy)
    assert f"{copy} has no intact checkpoint" in message
    assert message.count("state/_METADATA: truncated") == 2
    assert sorted(copy.rglob("*")) == before
    assert "No other checkpoint is intact" in refusal(PidModel.from_pretrained, copy)


def test_damage_to_the_description_is_refused_by_loading(misdescribed):
    run, file = misdescribed
    for path in (run, run / "checkpoints" / str(LAST)):
        message = refusal(PidModel.from_pretrained, path)
        assert file in message


def test_damage_to_the_description_never_reaches_training(misdescribed):
    """The configuration of the command counts. A file in model/ that is another is refused."""
    copy, file = misdescribed
    try:
        assert loop.train(config(), copy) == LAST
    except UserError as error:
        assert file in str(error)  # noqa: PT017 - training may also succeed
        return
    assert file == "config.json"
    loop.train(config(), copy, other_data=True)  # writes config.json again
    assert PidModel.from_pretrained(copy).tokenizer is not None


@pytest.mark.parametrize("steps", [LAST, pytest.param(LAST + 1, marks=pytest.mark.slow)])
def test_other_files_in_model_are_accepted_on_purpose(copy, steps):
    (copy / "model" / "generation_config.json").write_text('{"max_new_tokens": 5}')
    assert "--other-data" in refusal(PidModel.from_pretrained, copy)
    assert "--other-data" in refusal(loop.train, config(steps), copy)
    assert loop.train(config(steps), copy, other_data=True) == steps
    assert PidModel.from_pretrained(copy).generation_config["max_new_tokens"] == 5


def test_only_the_checkpoint_in_use_must_be_intact(copy):
    flip(copy / "checkpoints" / str(BEFORE) / "state" / "manifest.ocdbt")
    assert PidModel.from_pretrained(copy).tokenizer is not None


def test_the_best_is_unknown_where_metrics_of_any_checkpoint_are_damaged(copy):
    flip_last_digit(copy / "checkpoints" / str(BEFORE) / "metrics" / "metrics")
    message = refusal(PidModel.from_pretrained, copy)
    last = copy / "checkpoints" / str(LAST)
    assert f"the best checkpoint is unknown: name one, for example the newest intact, {last}" in (
        message
    )
    assert PidModel.from_pretrained(last).tokenizer is not None


def without_manifests(run):
    """A run as earlier versions wrote it."""
    for path in run.rglob(manifest.FILE):
        path.unlink()
    for path in run.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        metadata = json.loads(path.read_text())
        path.write_text(json.dumps({**metadata, "custom_metadata": {}}))


def test_a_run_of_an_earlier_version_is_used_and_said_not_to_be_verified(copy, run, caplog):
    without_manifests(copy)
    with caplog.at_level(logging.WARNING, "pid_jax"):
        assert PidModel.from_pretrained(copy).tokenizer is not None
    assert "not verified" in caplog.text
    assert loop.train(config(LAST + 1), copy) == LAST + 1
    assert (copy / "metrics.jsonl").read_text().startswith((run / "metrics.jsonl").read_text())
    assert (copy / manifest.FILE).exists()


@pytest.mark.parametrize(
    ("how", "file"),
    [(truncate, "state/_METADATA"), (unlink, "state/manifest.ocdbt"), (truncate, WEIGHTS)],
)
def test_what_cannot_be_read_of_an_earlier_version_is_a_user_error(copy, how, file):
    without_manifests(copy)
    last = copy / "checkpoints" / str(LAST)
    how(last / (largest(last) if file == WEIGHTS else file))
    for action in (
        lambda: PidModel.from_pretrained(copy),
        lambda: loop.train(config(LAST + 1), copy),
    ):
        assert f"{last}: cannot be read" in refusal(action)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "in.jsonl"
    line = {"id": "d", "document": "a b", "subtasks": [{"id": "q", "prompt": "c"}]}
    path.write_text(json.dumps(line))
    return path


@pytest.mark.parametrize("what", ["checkpoint", "description", "metrics"])
@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_commands_exit_with_status_2_and_one_line(copy, tmp_path, questions, capfd, what, command):
    last = copy / "checkpoints" / str(LAST)
    file = {
        "checkpoint": last / largest(last),
        "description": copy / "model" / "tokenizer.json",
        "metrics": last / "metrics" / "metrics",
    }[what]
    flip_last_digit(file) if what == "description" else flip(file)
    main, arguments = {
        "eval": (evaluate.main, [f"--output={tmp_path / 'out'}", "--split=test", "--limit=1"]),
        "predict": (predict.main, [f"--input={questions}", f"--output={tmp_path / 'out'}"]),
        "export": (export_command.main, [f"--output={tmp_path / 'out'}"]),
    }[command]
    with pytest.raises(SystemExit) as stopped:
        main([f"--checkpoint={copy}", *arguments])
    assert stopped.value.code == 2
    errors = capfd.readouterr().err
    assert file.name in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in errors
    assert not (tmp_path / "out").is_file()
    assert not list(tmp_path.glob("out/*"))

    if what != "description":  # an intact checkpoint can be named
        main([f"--checkpoint={copy / 'checkpoints' / str(BEFORE)}", *arguments])
        assert (tmp_path / "out").exists()


def test_a_step_that_the_run_lacks_is_an_error_that_lists_those_it_has(copy):
    message = refusal(PidModel.from_pretrained, copy / "checkpoints" / "7")
    assert "no checkpoint of step 7: there are 10, 12" in message


@pytest.mark.slow
def test_another_run_starts_from_a_step_of_this_one(run, tmp_path):
    other = config(steps=1)
    other.model.init = str(run / "checkpoints" / str(BEFORE))
    loop.train(other, tmp_path / "other")
    flip(copy := Path(shutil.copytree(run, tmp_path / "copy")) / "model" / "config.json")
    other.model.init = str(copy.parents[1])
    assert "model/config.json" in refusal(loop.train, other, tmp_path / "another")
