"""`python -m pid_jax.predict`: what it writes, and that kills and bad lines cost none of it."""

import functools
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import pytest

from pid_jax import models, predict
from pid_jax.atomic_file import partial_path
from pid_jax.decoding.options import GenerationOptions
from pid_jax.inputs import Method
from pid_jax.model import PidModel
from pid_jax.outputs import Generation
from pid_jax.predict import main
from tests import tiny_checkpoint
from tests.questions import question, text_of

LINES: list[dict[str, Any]] = [
    {
        "id": "short",
        "document": "[user] a hotel",
        "note": {"kept": [1, 2]},
        "subtasks": [
            {"id": "area", "prompt": "hotel-area"},
            {"id": "stars", "prompt": "hotel-stars", "target": "4", "weight": 0.5},
        ],
    },
    {
        "id": "long",
        "document": "[user] i want a cheap hotel in the north with parking , é",
        "subtasks": [{"id": "name", "prompt": "hotel-name"}],
    },
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return path


def run(checkpoint: Path, questions: Path, output: Path, *options: str) -> list[dict[str, Any]]:
    main([f"--checkpoint={checkpoint}", f"--input={questions}", f"--output={output}", *options])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_every_subtask_gains_what_the_model_generates(
    checkpoint: Path, questions: Path, tmp_path: Path, method: Method
) -> None:
    lines = run(
        checkpoint, questions, tmp_path / "out.jsonl", f"--method={method}", "--max-new-tokens=4"
    )

    model = PidModel.from_pretrained(checkpoint)
    for line in lines:
        document, prompts = line["document"], [subtask["prompt"] for subtask in line["subtasks"]]
        [expected] = model.generate([document], [prompts], max_new_tokens=4, method=method)
        assert [s["prediction"] for s in line["subtasks"]] == [answer.text for answer in expected]
        assert [s["score"] for s in line["subtasks"]] == pytest.approx(
            [answer.score for answer in expected], abs=1e-4
        )


def test_lines_keep_their_order_and_whatever_else_they_hold(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    lines = run(checkpoint, questions, tmp_path / "out.jsonl", "--max-new-tokens=2")
    for line in lines:
        for subtask in line["subtasks"]:
            del subtask["prediction"], subtask["score"]
    assert lines == LINES


def test_the_input_may_be_the_output(checkpoint: Path, questions: Path) -> None:
    lines = run(checkpoint, questions, questions, "--max-new-tokens=2")
    assert [line["id"] for line in lines] == ["short", "long"]
    assert "prediction" in lines[0]["subtasks"][0]


def test_a_bad_line_is_named_and_the_old_output_stays(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("old\n")
    with questions.open("a") as file:
        file.write('{"id": "third", "document": \n')
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, questions, output)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert f"{questions}, line 3: not JSON" in error
    assert output.read_text() == "old\n"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--input=nowhere.jsonl", "nowhere.jsonl"),
        ("--checkpoint=./nowhere", "nowhere"),
        ("--output=.", "it is a directory"),
        ("--batch-size=0", "batch_size must be at least 1"),
        ("--batch-tokens=0", "batch_tokens must be at least 1"),
        ("--max-new-tokens=0", "max_new_tokens"),
        ("--temperature=0", "temperature must be above 0"),
        ("--write-every=0", "--write-every must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    checkpoint: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, questions, tmp_path / "out.jsonl", option)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_checkpoint_without_a_tokenizer_is_refused(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(SystemExit):
        run(bare, questions, tmp_path / "out.jsonl")
    assert "no tokenizer" in capsys.readouterr().err


# How answers are chosen


def test_every_option_of_decoding_has_its_default() -> None:
    given = predict._parser().parse_args(["--checkpoint=c", "--input=i", "--output=o"])
    options = {field.name: getattr(given, field.name) for field in fields(GenerationOptions)}
    assert GenerationOptions(**options) == GenerationOptions()


def test_options_reach_the_model(
    no_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def generate(model: Model, documents: Sequence[str], *_: Any, **options: Any) -> Any:
        calls.append(options)
        return [[Generation("", [], 0.0)] * 2 for _ in documents]

    monkeypatch.setattr(Model, "generate", generate)
    questions.write_bytes(text_of(1))
    command = "--do-sample --temperature=0.5 --top-k=3 --seed=7 --stop=; --stop=. --batch-tokens=99"
    run(no_model, questions, tmp_path / "out.jsonl", *command.split(), "--num-return-sequences=2")
    assert (
        calls[-1].items()
        >= {
            "do_sample": True,
            "temperature": 0.5,
            "top_k": 3,
            "seed": 7,
            "stop": [";", "."],
            "num_return_sequences": 2,
            "batch_tokens": 99,
            "batch_size": None,
            "allowed": None,
            "progress": False,
        }.items()
    )


def test_several_answers_are_written_and_resumed(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, beams = tmp_path / "out.jsonl", ["--num-beams=2", "--num-return-sequences=2"]
    options = ["--max-new-tokens=4", "--write-every=1", *beams]
    lines = run(checkpoint, questions, output, *options)
    model = PidModel.from_pretrained(checkpoint)
    for line in lines:
        prompts = [subtask["prompt"] for subtask in line["subtasks"]]
        [expected] = model.generate(
            [line["document"]], [prompts], max_new_tokens=4, num_beams=2, num_return_sequences=2
        )
        for subtask, answer in zip(line["subtasks"], expected, strict=True):
            [other], [alternative] = subtask["alternatives"], answer.alternatives
            assert (subtask["prediction"], other["prediction"]) == (answer.text, alternative.text)
            assert other["score"] == pytest.approx(alternative.score, abs=1e-4)
    assert "2 documents, 3 prompts in" in capsys.readouterr().out  # what decoding did

    # As a run that was killed after the first document left it.
    whole = output.read_bytes()
    with questions.open("a") as file:
        file.write("{\n")
    with pytest.raises(SystemExit):
        run(checkpoint, questions, output, *options)
    questions.write_bytes(questions.read_bytes()[:-2])
    run(checkpoint, questions, output, *options)
    assert output.read_bytes() == whole
    # Answers of before give way, whichever there are.
    [line, _] = run(checkpoint, output, output, "--max-new-tokens=4")
    assert line["subtasks"][0].keys() == {"id", "prompt", "prediction", "score"}


def with_allowed(number: int, *allowed: Any) -> bytes:
    line = question(number)
    line["subtasks"] = line["subtasks"][: len(allowed)]
    for subtask, texts in zip(line["subtasks"], allowed, strict=True):
        subtask["allowed"] = texts
    return json.dumps(line).encode() + b"\n"


def test_predictions_keep_to_what_a_line_allows(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    questions.write_bytes(text_of(2) + with_allowed(5, ["north", "south"], None, ["4"]))
    options = ["--max-new-tokens=4", "--write-every=1"]
    free, line = run(checkpoint, questions, tmp_path / "out.jsonl", *options)
    predictions = [subtask["prediction"] for subtask in line["subtasks"]]
    assert predictions[0] in ("north", "south")
    assert predictions[2] == "4"
    assert line["subtasks"][0]["allowed"] == ["north", "south"]
    # Documents 2 and 5 differ in a digit; the subtask without a list is free as any.
    model = PidModel.from_pretrained(checkpoint)
    [[answer]] = model.generate([line["document"]], [["p1"]], max_new_tokens=4)
    assert predictions[1] == answer.text
    assert not {subtask["prediction"] for subtask in free["subtasks"]} & {"north", "south", "4"}


def test_an_allowed_text_that_is_too_long_makes_a_bad_line(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a text of more than four tokens"
    questions.write_bytes(text_of(0) + with_allowed(1, ["4"], ["4", long]) + with_allowed(3, ["4"]))
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=4", "--write-every=1"]
    assert status_of(lambda: run(checkpoint, questions, output, *options)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {questions}, line 2, subtask 2: "allowed": {long!r} takes')
    assert "max_new_tokens=4" in error
    assert "1 documents are answered" in error
    assert status_of(lambda: run(checkpoint, questions, output, *options, "--on-error=skip")) == 3
    assert ids_in(output) == ["d0", "d3"]


@pytest.fixture(scope="module")
def few_positions(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART for documents of 12 tokens."""
    tokenizer = PidModel.from_pretrained(checkpoint).tokenizer
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 12}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = {"model_type": "bart", "vocab_size": len(tokenizer), **sizes, **heads}
    model = models.build({**config, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16})
    directory = tmp_path_factory.mktemp("bart")
    params = models.init_params(model, jax.random.key(0))
    PidModel(model, params, tokenizer).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("options", "document", "reason"),
    [
        ([], "a " * 50, "the document has"),
        (["--method=pie"], "a " * 8, "the document has 16 tokens (its prompt's"),
        (["--max-new-tokens=9"], "a", "the prompt of subtask 2 has"),
    ],
)
def test_what_is_longer_than_the_model_has_positions_for_makes_a_bad_line(
    few_positions: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    document: str,
    reason: str,
) -> None:
    longer = question(1) | {"document": document}
    longer["subtasks"][1]["prompt"] = "hotel-name hotel-area"
    questions.write_bytes(text_of(0) + json.dumps(longer).encode() + b"\n" + text_of(2))
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=3", "--on-error=skip", *options]
    assert status_of(lambda: run(few_positions, questions, output, *options)) == 3
    assert f"{questions}, line 2: {reason}" in capsys.readouterr().err
    assert ids_in(output) == ["d0", "d2"]


def test_a_bad_checkpoint_is_no_bad_line(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions.write_bytes(with_allowed(0, ["4"]))
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    assert status_of(lambda: run(nowhere, questions, tmp_path / "o", "--on-error=skip")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "left out" not in error


# The command, with those answers


class Model:
    config = models.config_from_hf({"model_type": "t5"})
    tokenizer = "some"

    def generate(
        self,
        documents: Sequence[str],
        prompts: Sequence[Sequence[str]],
        after_batch: Callable[[float, float], None] | None = None,
        **options: Any,
    ) -> list[list[Generation]]:
        """Answers a document after the other, the last in two batches."""
        parts = [1.0] * (len(documents) - 1) + [0.25, 0.75] if documents else []
        for part in parts:
            if after_batch is not None:
                after_batch(part, 0.5)
        return [
            [Generation(f"{document}, {prompt}", [], -1.5) for prompt in asked]
            for document, asked in zip(documents, prompts, strict=True)
        ]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for a checkpoint: it is never loaded."""
    monkeypatch.setattr(PidModel, "from_pretrained", lambda path: Model())
    checkpoint = tmp_path_factory.mktemp("no_model")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    return checkpoint


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


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


def status_of(run: Callable[[], object]) -> int:
    with pytest.raises(SystemExit) as stopped:
        run()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


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


def test_a_stop_at_a_bad_line_keeps_the_answers_for_when_it_is_mended(
    no_model: Path, ten_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--max-new-tokens=2", "--write-every=1"]
    for bad_line, answers in ((3, 2), (5, 3), (7, 4), (9, 5)):
        assert status_of(lambda: run(no_model, ten_lines, output, *options)) == 2
        error = capsys.readouterr().err
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
        ("--stop=,", "stop=[], not [',']"),
        (f"--checkpoint={other}", "another checkpoint"),
    ]:
        again = functools.partial(run, no_model, ten_lines, output, *options, changed)
        assert status_of(again) == 2
        error = capsys.readouterr().err
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
    monkeypatch.setattr(predict, "SECONDS_BETWEEN_REPORTS", 0.0)
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
    error = capsys.readouterr().err
    assert error.startswith("error: document 'short': the memory does not suffice for it alone")


def test_what_takes_too_much_memory_together_is_answered_one_by_one(
    no_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(
        model: Model, documents: Sequence[str], prompts: Sequence[Sequence[str]], **options: Any
    ) -> Any:
        if len(documents) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return [[Generation(text, [], 0.0) for text in asked] for asked in prompts]

    monkeypatch.setattr(Model, "generate", generate)
    lines = run(no_model, questions, tmp_path / "out.jsonl")
    assert [s["prediction"] for line in lines for s in line["subtasks"]] == [
        subtask["prompt"] for line in LINES for subtask in line["subtasks"]
    ]


def test_ctrl_c_keeps_the_answers_and_says_how_to_go_on(
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


# Processes, killed


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process compiles is found by the next."""
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.mark.slow
def test_a_closed_standard_output_is_one_sentence(
    checkpoint: Path, questions: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pid_jax.predict", f"--checkpoint={checkpoint}"]
    process = subprocess.Popen(
        [*command, f"--input={questions}", "--output=-", "--max-new-tokens=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=100) == 2
    assert "error: standard output was closed before all was written" in error
    assert "Traceback" not in error
    assert "Exception ignored" not in error


@pytest.mark.slow
def test_killed_five_times_the_output_is_complete_in_order_and_each_once(
    checkpoint: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    documents = int(os.environ.get("PID_JAX_KILLED_DOCUMENTS", "60"))
    words = (tiny_checkpoint.__doc__ or "").split()
    chance = random.Random()
    questions, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with questions.open("w") as file:
        for number in range(documents):
            text = " ".join(chance.choices(words, k=chance.randint(1, 40)))
            file.write(json.dumps(question(number) | {"document": text}) + "\n")

    def start(output: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pid_jax.predict"),
                *(f"--checkpoint={checkpoint}", f"--input={questions}", f"--output={output}"),
                *("--max-new-tokens=16", f"--write-every={max(2, documents // 40)}"),
            ],
            env=environment,
        )

    assert start(tmp_path / "whole.jsonl").wait(timeout=1000) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert ids_in(tmp_path / "whole.jsonl") == [f"d{number}" for number in range(documents)]

    left = []
    for kill in range(5):
        # At any moment: while it starts, or at a random line of what this attempt writes.
        process = start(output)
        if kill == 0:
            time.sleep(chance.uniform(0, 3))
        wanted = chance.uniform(kill / 5, (kill + 0.9) / 5) * len(whole) if kill else 0
        while partial_size(output) < wanted and process.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        assert process.wait() == -9, "it ended before it could be killed"
        assert not output.exists()
        left.append(partial_size(output))
        if left[-1]:
            right_so_far = whole.startswith(partial_path(output).read_bytes())
            assert right_so_far
    assert start(output).wait(timeout=1000) == 0
    the_same = output.read_bytes() == whole
    assert the_same
    assert not list(tmp_path.glob("*.partial*"))
    print(f"{documents} documents, {len(whole)} bytes; killed with {left} bytes written")


def partial_size(output: Path) -> int:
    try:
        return partial_path(output).stat().st_size
    except FileNotFoundError:
        return 0
