"""`pid-jax eval` with a model and with predictions: one program, the same flags and files."""

import json
from pathlib import Path
from typing import Any

import pytest

from pid_jax import evaluation, tasks
from pid_jax.commands.evaluate import main
from pid_jax.commands.prepare import main as prepare
from pid_jax.data.examples import Example
from pid_jax.training import config as configuration
from pid_jax.training import loop
from tests.helpers import tiny_config

TINY = Path(tiny_config.__file__)
DATA = {"train_dialogues": 4, "validation_dialogues": 2, "test_dialogues": 2}
OPTIONS = [f"--option={name}={value}" for name, value in DATA.items()]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(tasks.get("synthetic_dst", **DATA).examples(None, "test"))


@pytest.fixture
def gold(tmp_path: Path, examples: list[Example]) -> Path:
    """A file with the right predictions."""
    path = tmp_path / "gold.jsonl"
    lines = [
        {"id": one.id, "subtasks": [{"id": s.id, "prediction": s.target} for s in one.subtasks]}
        for one in examples
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def metrics(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "metrics.json").read_text())
    return content


def failure(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_predictions_are_scored_by_config_by_task_and_from_a_prepared_data_set(
    tmp_path: Path, gold: Path, examples: list[Example]
) -> None:
    prepare(["--task=synthetic_dst", *OPTIONS, f"--data-dir={tmp_path / 'prepared'}"])
    overrides = [f"--config.data.options.{name}={value}" for name, value in DATA.items()]
    data = {
        "config": [f"--config={TINY}", *overrides],
        "config and options": [f"--config={TINY}", *OPTIONS],
        "task": ["--task=synthetic_dst", *OPTIONS],
        "override": ["--task=synthetic_dst", *overrides],
        "prepared": ["--task=synthetic_dst", *OPTIONS, f"--path={tmp_path / 'prepared'}"],
    }
    written = []
    for name, flags in data.items():
        main([f"--predictions={gold}", f"--output={tmp_path / name}", *flags])
        assert metrics(tmp_path / name)["metrics"]["joint_goal_accuracy"] == 1.0
        assert metrics(tmp_path / name)["documents"] == len(examples)
        written.append([(tmp_path / name / file).read_bytes() for file in evaluation.FILES])
    assert all(files == written[0] for files in written)


def test_a_checkpoint_and_its_predictions_get_the_same_files_and_scores(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--config={TINY}", *OPTIONS, "--limit=3", "--config.data.target_tokens=2"]
    first, second = tmp_path / "first", tmp_path / "second"
    main([f"--checkpoint={checkpoint}", f"--output={first}", *data])
    of_model = capsys.readouterr().out
    main([f"--predictions={first / 'predictions.jsonl'}", f"--output={second}", *data])
    of_file = capsys.readouterr().out
    for directory in (first, second):
        assert {path.name for path in directory.iterdir()} == set(evaluation.FILES)
    names = ("task", "split", "metrics", "tables", "baseline", "policy", "documents", "prompts")
    assert {n: metrics(first)[n] for n in names} == {n: metrics(second)[n] for n in names}
    predictions = [(path / "predictions.jsonl").read_bytes() for path in (first, second)]
    assert predictions[0] == predictions[1]
    shown = [line.split() for line in of_model.splitlines()]
    for line in of_file.splitlines():
        if line.startswith("  "):
            assert line.split() in shown, line


def test_a_training_run_is_evaluated_by_its_own_configuration(tmp_path: Path) -> None:
    config = tiny_config.get_config()
    config.train.steps = 1
    config.optimizer.warmup_steps = 0
    config.evaluation.documents = 1
    config.data.target_tokens = 2
    run = tmp_path / "run"
    loop.train(config, run)
    with_config = configuration.of_run(run)
    assert configuration.differences(with_config, config) == {}

    main([f"--checkpoint={run}", f"--output={tmp_path / 'out'}", "--limit=2", *OPTIONS])
    assert metrics(tmp_path / "out")["truncation"]["limits"]["target_tokens"] == 2
    main(
        [
            *(f"--checkpoint={run}", f"--output={tmp_path / 'other'}", "--limit=2", *OPTIONS),
            "--config.data.target_tokens=1",
        ]
    )
    assert metrics(tmp_path / "other")["truncation"]["limits"]["target_tokens"] == 1


def test_a_run_of_an_earlier_version_or_with_an_optimizer_from_python_is_read(
    tmp_path: Path,
) -> None:
    config = tiny_config.get_config()
    saved = json.loads(configuration.to_json(configuration.with_optimizer_from_python(config)))
    assert saved["optimizer"]["name"] == "train(optimizer=...)"
    del saved["checkpoint"]["keep_last"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    read = configuration.of_run(tmp_path)
    assert read.data.to_dict() == config.data.to_dict()
    assert read.checkpoint.keep_last == configuration.default().checkpoint.keep_last
    for wrong in ({**saved, "train": 3}, {**saved, "optimizer": "adam"}, [saved]):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(configuration.UserError, match=r"config\.json"):
            configuration.of_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(configuration.UserError, match=r"config\.json"):
        configuration.of_run(tmp_path)


def test_what_is_missing_or_does_not_fit_is_named(
    checkpoint: Path, gold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"--output={tmp_path / 'out'}"
    config = f"--config={TINY}"
    assert "one of the arguments --checkpoint --predictions" in failure([config], capsys)
    both = [f"--checkpoint={checkpoint}", f"--predictions={gold}", config]
    assert "not allowed with argument" in failure(both, capsys)
    alone = failure([f"--checkpoint={checkpoint}", output], capsys)
    assert "is no training run" in alone
    assert "--config=FILE" in alone
    needs = failure([f"--checkpoint={checkpoint}", config], capsys)
    assert needs == "error: --checkpoint needs --output=DIRECTORY for its answers and scores\n"
    assert "--task=NAME or --config=FILE" in failure([f"--predictions={gold}"], capsys)
    method = failure([f"--predictions={gold}", config, "--method=pie"], capsys)
    assert "--method=pie needs --checkpoint" in method
    weights = failure([f"--predictions={gold}", config, "--weights=int8"], capsys)
    assert weights == "error: --weights=int8 needs --checkpoint: predictions have no weights\n"
    typo = failure([f"--predictions={gold}", "--task=synthetic_dst", "--limt=3"], capsys)
    assert "unexpected argument '--limt=3'" in typo
    assert not (tmp_path / "out").exists()


def test_one_task_of_a_mixture_is_scored(
    tmp_path: Path, gold: Path, examples: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mixture.py"
    entries = {
        "few": {"weight": 1.0, "task": "synthetic_dst", "options": DATA},
        "other": {"weight": 2.0, "task": "squad2", "path": "squad"},
    }
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "from pid_jax.training import config as configuration\n"
        "def get_config():\n"
        "    config = configuration.default()\n"
        f"    config.data.mixture = ConfigDict({entries})\n"
        "    return config\n"
    )
    flags = [f"--config={config}", f"--predictions={gold}"]
    main([*flags, "--task=few", f"--output={tmp_path / 'scores'}"])
    assert metrics(tmp_path / "scores")["metrics"]["joint_goal_accuracy"] == 1.0
    assert metrics(tmp_path / "scores")["documents"] == len(examples)
    assert "config.data.mixture has several tasks: choose from few, other" in failure(flags, capsys)
