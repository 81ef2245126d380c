import errno
import json
import math
import os

import pytest

from pid_jax.errors import UserError
from pid_jax.training.metrics_writer import METRICS, MetricsWriter, lines_until, truncate_after


def lines(workdir):
    return [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]


def test_a_line_is_in_the_file_at_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 0.5})
        assert lines(tmp_path) == [{"step": 1, "split": "train", "loss": 0.5}]


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", {"loss": float(step)})
    with MetricsWriter(tmp_path, resume_after=2) as writer:
        writer.write(3, "train", {"loss": 30.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


@pytest.mark.parametrize("damaged", [b'{"step": "x"}', b'{"st\xff": 1}', b"{", b"[]", b"{}"])
def test_a_damaged_line_is_named(tmp_path, damaged):
    path = tmp_path / METRICS
    path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged"):
        lines_until(tmp_path, 9)


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    truncate_after(path, 5)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_whole_number_cut_short_is_dropped_too(tmp_path):
    # It would parse, as another number.
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": 2}')
    truncate_after(path, 5)
    assert path.read_text() == '{"step": 1}\n'


class Received:
    """A logger that remembers."""

    def __init__(self):
        self.calls = []

    def write(self, step, prefix, metrics):
        self.calls.append((step, prefix, dict(metrics)))


def test_loggers_receive_what_is_shown_and_the_file_has_all(tmp_path):
    loggers = [Received(), Received()]
    with MetricsWriter(tmp_path, loggers=loggers) as writer:
        writer.write(1, "train", {"loss": 0.5}, events=False)
        writer.write(2, "train", {"loss": 0.25})
        writer.write_events(2, {"mfu": 0.4})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    for logger in loggers:
        assert logger.calls == [(2, "train", {"loss": 0.25}), (2, "", {"mfu": 0.4})]


def test_what_is_not_finite_is_null_in_the_file_and_unknown_to_loggers(tmp_path):
    logger = Received()
    with MetricsWriter(tmp_path, loggers=[logger]) as writer:
        writer.write(1, "train", {"loss": math.nan, "gradient_norm": math.inf, "subtasks": 3.0})
    text = (tmp_path / METRICS).read_text()
    expected = {"loss": None, "gradient_norm": None, "subtasks": 3.0}
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "split": "train", **expected}
    assert logger.calls == [(1, "train", {"subtasks": 3.0})]


def test_a_line_names_the_metrics_whose_lowest_value_is_best(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "task", {"wer": 0.5}, lower_is_better=("wer",))
    assert lines(tmp_path) == [{"step": 1, "split": "task", "wer": 0.5, "lower_is_better": ["wer"]}]


def test_lines_until_a_step_are_those_that_a_resumed_run_retains(tmp_path):
    assert lines_until(tmp_path, 5) == []
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2')
    assert lines_until(tmp_path, 2) == [{"step": 1}, {"step": 2}]


def test_the_file_is_closed_after_an_error(tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = Received()
    logger.write = full
    with (
        pytest.raises(OSError, match="No space left"),
        MetricsWriter(tmp_path, loggers=[logger]) as writer,
    ):
        writer.write(1, "train", {"loss": 0.5})
    assert writer._lines.closed
