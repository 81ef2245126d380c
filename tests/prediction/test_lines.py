"""Bad lines and stops: no document is lost, none is answered twice."""

import functools
import gzip
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from pid_jax.atomic_file import partial_path
from pid_jax.inference.results import Generation
from pid_jax.predict import main
from pid_jax.prediction import progress
from tests.helpers.predict_command import LINES, Model, error_in, ids_in, run, status_of
from tests.helpers.questions import question

BAD = [
    b"{",
    b'{"id": "caf\xe9"}',
    b'{"id": "x", "subtasks": []}',
    json.dumps(question(0)).encode(),  # the id of the first line
]


@pytest.fixture
def ten_lines(tmp_path: Path) -> Path:
    """Lines 3, 5, 7 and 9 are bad."""
    good = [json.dumps(question(number)).encode() for number in range(6)]
    lines = [good[0], good[1], BAD[0], good[2], BAD[1], good[3], BAD[2], good[4], BAD[3], good[5]]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_bad_lines_are_left_out_on_request_and_counted(
    no_model: Path, ten_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--on-error=skip"]
    assert status_of(lambda: run(no_model, ten_lines, output, *options)) == 3
    assert ids_in(output) == [f"d{number}" for number in range(6)]
    printed = capsys.readouterr()
    assert [line.split(": ")[1] for line in printed.err.splitlines() if "left out" in line] == [
        f"{ten_lines}, line {number}" for number in (3, 5, 7, 9)
    ]
    assert "6 documents" in printed.out
    assert "4 bad lines left out" in printed.out


def test_a_stop_at_a_bad_line_leaves_the_answers_for_when_it_is_mended(
    no_model: Path, ten_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--max-new-tokens=2", "--write-every=1"]
    for bad_line, answers in ((3, 2), (5, 3), (7, 4), (9, 5)):
        assert status_of(lambda: run(no_model, ten_lines, output, *options)) == 2
        error = error_in(capsys.readouterr().err)
        assert error.startswith(f"error: {ten_lines}, line {bad_line}: ")
        assert f"{answers} documents are answered, in {partial_path(output)}" in error
        assert not output.exists()
        lines = ten_lines.read_bytes().split(b"\n")
        lines[bad_line - 1] = b""  # mended
        ten_lines.write_bytes(b"\n".join(lines))
    run(no_model, ten_lines, output, *options)
    assert ids_in(output) == [f"d{number}" for number in range(6)]
    assert "6 documents (5 of them before)" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_packed_input_with_a_byte_order_mark_is_answered_and_resumed(
    no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(question(number)) for number in range(5)]
    plain, packed = tmp_path / "in.jsonl", tmp_path / "in.jsonl.gz"
    plain.write_text("\n".join(lines), encoding="utf-8")
    run(no_model, plain, tmp_path / "expected.jsonl")
    output = tmp_path / "out.jsonl"
    packed.write_bytes(gzip.compress("\r\n".join([*lines[:3], "{"]).encode("utf-8-sig")))
    assert status_of(lambda: run(no_model, packed, output, "--write-every=1")) == 2
    assert f"{packed}, line 4: not JSON" in capsys.readouterr().err
    packed.write_bytes(gzip.compress("\r\n".join(lines).encode("utf-8-sig")))
    run(no_model, packed, output, "--write-every=1")
    assert "5 documents (3 of them before)" in capsys.readouterr().out
    assert output.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_a_packed_output_is_refused(
    no_model: Path, ten_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(lambda: run(no_model, ten_lines, tmp_path / "out.jsonl.gz")) == 2
    assert "out.jsonl.gz: the output is written as plain text" in capsys.readouterr().err


def test_other_options_or_another_model_are_refused_until_a_restart(
    no_model: Path,
    ten_lines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--max-new-tokens=2", "--write-every=1"]
    status_of(lambda: run(no_model, ten_lines, output, *options))
    answers = partial_path(output).read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"Weights")
    capsys.readouterr()
    for changed, message in [
        ("--max-new-tokens=3", "max_new_tokens=2, not 3"),
        ("--method=pie", "method=pid, not pie"),
        ("--stop=,", "stop=(default), not [',']"),
        (f"--checkpoint={other}", "another checkpoint"),
    ]:
        again = functools.partial(run, no_model, ten_lines, output, *options, changed)
        assert status_of(again) == 2
        error = error_in(capsys.readouterr().err)
        assert f"{partial_path(output)} has answers of a run that was stopped" in error
        assert message in error
        assert "--restart" in error
        assert partial_path(output).read_bytes() == answers

    # What changes no answer may change.
    skip = ("--batch-size=2", "--batch-tokens=9", "--write-every=3", "--on-error=skip")
    assert status_of(lambda: run(no_model, ten_lines, output, *options, *skip)) == 3
    assert output.read_bytes().startswith(answers)

    status_of(lambda: run(no_model, ten_lines, output, *options))
    restarted = (*options, "--max-new-tokens=3", "--on-error=skip", "--restart")
    assert status_of(lambda: run(no_model, ten_lines, output, *restarted)) == 3
    assert ids_in(output) == [f"d{number}" for number in range(6)]


def test_bad_lines_of_the_input_are_never_lost_in_replacing_it(
    no_model: Path, ten_lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ten_lines.read_bytes()
    assert status_of(lambda: run(no_model, ten_lines, ten_lines, "--on-error=skip")) == 2
    assert "would leave its bad lines out" in capsys.readouterr().err
    assert ten_lines.read_bytes() == before


def test_the_file_being_written_is_no_input(
    no_model: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = questions.rename(partial_path(questions))
    before = partial.read_bytes()
    assert status_of(lambda: run(no_model, partial, questions, "--restart")) == 2
    assert f"{partial} is where --output={questions} is being written" in capsys.readouterr().err
    assert partial.read_bytes() == before


def test_standard_input_and_output_serve_as_well(
    no_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    expected = run(no_model, questions, tmp_path / "out.jsonl", "--max-new-tokens=2")
    capsysbinary.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(questions.read_bytes())))
    main([f"--checkpoint={no_model}", "--input=-", "--output=-", "--max-new-tokens=2"])
    printed = capsysbinary.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == expected
    assert b"-: 2 documents" in printed.err


def test_progress_is_reported_where_no_terminal_shows_it(
    no_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_REPORTS", 0.0)
    run(no_model, questions, tmp_path / "o")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"1 documents, 2.0 a second, 100% of {questions} read",
        f"1 documents, 1.2 a second, 100% of {questions} read",
        f"2 documents, 1.3 a second, 100% of {questions} read",
    ]


def test_a_terminal_shows_a_bar_over_the_whole_file(
    no_model: Path,
    ten_lines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status_of(
        lambda: run(no_model, ten_lines, tmp_path / "o", "--on-error=skip", "--write-every=2")
    )
    shown = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "100%" in shown[-1]
    assert "6/6" in shown[-1]
    assert sum(line.startswith("left out: ") for line in shown) == 4


def test_too_little_memory_is_no_bad_line(
    no_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def generate(model: Model, documents: Sequence[str], *_: Any, **options: Any) -> Any:
        if documents:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return []

    monkeypatch.setattr(Model, "generate", generate)
    output = tmp_path / "out.jsonl"
    assert status_of(lambda: run(no_model, questions, output, "--on-error=skip")) == 2
    error = error_in(capsys.readouterr().err)
    assert error.startswith("error: document 'short': the memory does not suffice for it alone")


def test_what_takes_too_much_memory_as_a_batch_is_answered_one_by_one(
    no_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(
        model: Model, documents: Sequence[str], prompts: Sequence[Sequence[str]], **options: Any
    ) -> Any:
        if len(documents) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return [[Generation(text, [], 0.0) for text in row] for row in prompts]

    monkeypatch.setattr(Model, "generate", generate)
    lines = run(no_model, questions, tmp_path / "out.jsonl")
    assert [s["prediction"] for line in lines for s in line["subtasks"]] == [
        subtask["prompt"] for line in LINES for subtask in line["subtasks"]
    ]


def test_ctrl_c_leaves_the_answers_and_says_how_to_go_on(
    no_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def generate(model: Model, documents: Sequence[str], *_: Any, **options: Any) -> Any:
        if documents == [LINES[1]["document"]]:
            raise KeyboardInterrupt
        return [[Generation("", [], 0.0)] * 2 for _ in documents]

    monkeypatch.setattr(Model, "generate", generate)
    output = tmp_path / "out.jsonl"
    assert status_of(lambda: run(no_model, questions, output, "--write-every=1")) == 130
    error = capsys.readouterr().err
    assert f"1 documents are answered, in {partial_path(output)}: the same command" in error
    assert ids_in(partial_path(output)) == ["short"]
