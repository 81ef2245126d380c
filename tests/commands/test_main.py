"""`pid-jax`: help, exit statuses, and the former spellings of its commands."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import eval as eval_program
import train as train_program
from pid_jax import evaluation, export, predict
from pid_jax.commands import main as dispatcher
from pid_jax.commands.main import COMMANDS, main
from pid_jax.data import prepare

ROOT = Path(__file__).parent.parent.parent


def status_of(argv: Sequence[str]) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    return stopped.value.code


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "usage: pid-jax COMMAND [--FLAG=VALUE ...]" in printed
    for name in ("train", "eval", "predict", "export", "prepare"):
        assert f"\n  {name} " in printed
    assert set(COMMANDS) == {"train", "eval", "predict", "export", "prepare", "compile-ahead"}


@pytest.mark.parametrize("argv", [[], ["tain"], ["--nothing"]])
def test_without_a_command_that_exists_the_status_is_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(argv) == 2
    assert "usage: pid-jax COMMAND" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pid_jax 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_it_as_it_was_called(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: pid-jax {command} ")
    assert "PROGRAM" not in printed
    flags = [word for word in printed.split() if word.startswith("--")]
    assert not any("_" in flag.split("=")[0] for flag in flags if "config." not in flag)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--config=nowhere", "--workdir=w"], "config file nowhere does not exist"),
        (["eval", "--task=synthetic_dst", "--predictions=nowhere"], "nowhere"),
        (["predict", "--checkpoint=./nowhere", "--input=no.jsonl", "--output=o"], "no.jsonl"),
        (["export", "--checkpoint=./nowhere", "--output=o"], "nowhere"),
        (["prepare", "--task=nothing", "--data_dir=d"], "nothing"),
    ],
)
def test_a_mistake_has_the_status_of_the_command(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("program", "module", "called"),
    [
        (train_program.main, "train", "python train.py"),
        (eval_program.main, "evaluate", "python eval.py"),
        (evaluation.main, "evaluate", "python -m pid_jax.evaluation"),
        (predict.main, "predict", "python -m pid_jax.predict"),
        (export.main, "export", "python -m pid_jax.export"),
        (prepare.main, "prepare", "python -m pid_jax.data.prepare"),
    ],
)
def test_a_former_program_is_the_command(program, module, called, capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as stopped:
        program(["--help"])
    assert stopped.value.code == 0
    former = capsys.readouterr().out
    command = next(name for name, (path, _) in COMMANDS.items() if path.endswith(f".{module}"))
    assert status_of([command, "--help"]) == 0
    # The names of the program differ in length, so lines break elsewhere.
    ours = capsys.readouterr().out.replace(f"pid-jax {command}", called)
    assert former.replace(f"pid-jax {command}", called).split() == ours.split()


def test_the_package_runs_as_a_module_and_its_help_does_not_wait_for_jax() -> None:
    for argv in (["--help"], ["train", "--help"], ["eval", "--help"]):
        ended = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "pid_jax", *argv],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        assert ended.returncode == 0
        assert ended.stdout.startswith("usage: python -m pid_jax")
        assert "| jax" not in ended.stderr


def test_a_command_is_imported_only_when_it_runs() -> None:
    assert dispatcher.__name__ == "pid_jax.commands.main"
    modules = [module for module, _ in COMMANDS.values()]
    program = (
        "import sys; import pid_jax.commands.main; "
        f"assert not sys.modules.keys() & set({modules!r}), sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)
