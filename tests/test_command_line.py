"""What the command lines share."""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pytest

from pid_jax.command_line import (
    add_fields,
    add_task_options,
    make_parser,
    task_options,
    user_errors,
)
from pid_jax.errors import UserError


def test_a_user_error_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, user_errors():
        raise UserError("file.jsonl, line 3: no document")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: file.jsonl, line 3: no document\n"


@pytest.mark.parametrize("encoding", ["cp1252", "iso-8859-7", "ascii", "utf-8"])
def test_any_text_can_be_printed(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(written, encoding, newline=""))

    def command() -> None:
        with user_errors():
            print("a → 猫 \udc80", flush=True)
            raise UserError("ไม่มี")

    with pytest.raises(SystemExit):
        command()
    sys.stderr.flush()
    shown = [line.encode(encoding, "backslashreplace") for line in ("a → 猫 \udc80", "error: ไม่มี")]
    assert written.getvalue().splitlines() == shown


def test_flags_have_hyphens_and_the_spelling_with_underscores_works_too() -> None:
    parser = make_parser("program", "PROGRAM reads 100% of DATA_DIR.", usage="--data-dir=PATH 5%")
    parser.add_argument("--data-dir")
    parser.add_argument("--other-data", action="store_true")
    for flags in (["--data-dir=a_b", "--other-data"], ["--data_dir", "a_b", "--other_data"]):
        assert vars(parser.parse_args(flags)) == {"data_dir": "a_b", "other_data": True}
    # Keys of a configuration are spelled as they are.
    _, rest = parser.parse_known_args(["--config.data.batch_size=3", "--data_dir=x"])
    assert rest == ["--config.data.batch_size=3"]
    text = parser.format_help()
    assert "usage: program --data-dir=PATH 5%" in text
    assert "program reads 100% of DATA_DIR." in text


def test_a_fault_of_the_code_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), user_errors():
        _ = 1 / 0


@dataclass(frozen=True)
class Options:
    longest_answer: int = 32
    """How many words, at
    100% of speed."""
    share: float = 0.5
    loud: bool = False
    """Says it."""
    patience: bool | Literal["never"] = False
    names: Sequence[str] = ()
    tokens: Sequence[int] = ()
    words: Sequence[Sequence[int]] = ()


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_fields(parser, Options)
    return parser


def test_an_option_that_is_not_given_is_none(parser: argparse.ArgumentParser) -> None:
    assert vars(parser.parse_args([])) == dict.fromkeys(asdict(Options()))


def test_options_have_the_types_of_their_fields(parser: argparse.ArgumentParser) -> None:
    command = "--longest-answer=4 --share 1 --loud --patience=never --names=a --names=b"
    command += " --tokens=5 --tokens=6 --words=7,8 --words=9"
    assert vars(parser.parse_args(command.split())) == {
        "longest_answer": 4,
        "share": 1.0,
        "loud": True,
        "patience": "never",
        "names": ["a", "b"],
        "tokens": [5, 6],
        "words": [[7, 8], [9]],
    }
    assert parser.parse_args(["--no-loud"]).loud is False
    with pytest.raises(SystemExit):
        parser.parse_args(["--words=7,x"])
    assert parser.parse_args(["--patience=true"]).patience is True
    with pytest.raises(SystemExit):
        parser.parse_args(["--patience=sometimes"])


def test_the_text_below_a_field_is_the_help_of_its_option(
    parser: argparse.ArgumentParser,
) -> None:
    text = " ".join(parser.format_help().split())
    assert "--longest-answer N How many words, at 100% of speed. (default: 32)" in text
    assert "--share X (default: 0.5)" in text
    assert "--loud, --no-loud Says it. (default: false) --patience" in text
    assert "--patience {true,false,never} (default: false)" in text


def test_options_of_a_task_are_values_as_python_writes_them_or_texts() -> None:
    parser = argparse.ArgumentParser()
    add_task_options(parser)
    assert parser.parse_args([]).option == []
    given = parser.parse_args(
        ["--option", "any_of=True", "--option=prompts=both", "--option=a=1=2"]
    )
    assert task_options(given.option) == {"any_of": True, "prompts": "both", "a": "1=2"}


@pytest.mark.parametrize("text", ["any_of", "=True"])
def test_an_option_of_a_task_has_a_name_and_a_value(text: str) -> None:
    with pytest.raises(UserError, match=f"--option={text}: expected NAME=VALUE"):
        task_options([text])
