"""eval and predict as two processes write what one process writes."""

import json
import signal
import socket

import pytest

from tests.helpers import several_processes
from tests.helpers.several_processes import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs of all processes of these tests."""
    return {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}


def statuses(ends):
    return [one.status for one in ends]


def test_an_evaluation_by_two_processes_writes_what_one_writes(cache, checkpoint, tmp_path):
    for count in (1, 2):
        ends = run(
            [
                *("eval.py", "--config=tests/helpers/tiny_config.py", "--limit=13"),
                *(f"--checkpoint={checkpoint}", f"--output={tmp_path / str(count)}"),
            ],
            count=count,
            **cache,
        )
        assert statuses(ends) == [0] * count, ends
        assert ["slot_accuracy" in one.output for one in ends] == [True, False][:count]
    one, two = (tmp_path / name for name in ("1", "2"))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    name = "predictions.jsonl"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    of_one, of_two = (json.loads((path / "metrics.json").read_text()) for path in (one, two))
    for metrics in (of_one, of_two):
        for key in ("seconds", "seconds_per_document", "device"):
            del metrics[key]
    assert of_one == of_two


@pytest.fixture
def questions(tmp_path):
    """Documents of different lengths with one to three prompts."""
    lines = [
        {
            "id": str(number),
            "document": "[user] i want a cheap hotel in the north " * (1 + number % 4),
            "subtasks": [{"id": str(k), "prompt": f"hotel-{k}"} for k in range(1 + number % 3)],
        }
        for number in range(10)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def predict(checkpoint, questions, output, *options):
    return [
        *("-m", "pid_jax.predict", f"--checkpoint={checkpoint}", f"--input={questions}"),
        *(f"--output={output}", "--max-new-tokens=6", "--batch-size=1", *options),
    ]


def partial_has_lines(path):
    return lambda: path.exists() and b"\n" in path.read_bytes()


def test_a_prediction_goes_on_with_another_number_of_processes(
    cache, checkpoint, questions, tmp_path
):
    alone = tmp_path / "alone.jsonl"
    [ended] = run(predict(checkpoint, questions, alone, "--write-every=2"), count=1, **cache)
    assert ended.status == 0, ended.errors

    output = tmp_path / "answers.jsonl"
    partial = tmp_path / "answers.jsonl.partial"
    # Two processes write after twice as many documents.
    command = predict(checkpoint, questions, output, "--write-every=1")
    with several_processes.started(command, **cache) as processes:
        several_processes.wait_until(partial_has_lines(partial), processes)
        processes[0].kill()
        ends = several_processes.ended(processes, seconds=120)
    assert ends[0].status in (-signal.SIGKILL, 0)
    assert (ends[1].status == 0) == output.exists()  # on a slow machine all may be answered
    if not output.exists():
        ends = run(command, **cache)
        assert statuses(ends) == [0, 0], ends
        assert "10 documents" in ends[0].output
        assert "documents" not in ends[1].output
    assert output.read_bytes() == alone.read_bytes()
    assert not partial.exists()


def test_an_error_in_the_input_ends_both(cache, checkpoint, questions, tmp_path):
    with questions.open("a") as file:
        file.write("no JSON\n")
    ends = run(predict(checkpoint, questions, tmp_path / "answers.jsonl"), **cache)
    assert statuses(ends) == [2, 2], ends
    for one in ends:
        assert "line 11" in one.errors
        assert "Traceback" not in one.errors


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_cannot_connect_says_why(tmp_path, number):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if number == 0 else several_processes.free_port()
        [ended] = run(
            [
                *("train.py", "--config=quickstart", f"--workdir={tmp_path / 'run'}"),
                *(f"--coordinator-address=127.0.0.1:{port}", "--num-processes=2"),
                *(f"--process-id={number}", "--coordinator-timeout=2"),
            ],
            count=1,
        )
    assert ended.status == 2
    [line] = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    reason = ("Address already in use", "within 2 s (Connection refused)")[number]
    assert reason in line
    assert f"127.0.0.1:{port}" in line
