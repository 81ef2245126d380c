import errno
import json
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from pid_jax.training.metrics_writer import METRICS, MetricsWriter, truncate_after


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


def test_tensorboard_events_hold_every_scalar(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(7, "train", {"loss": 0.5, "exact_match": 1.0})
        writer.write_events(7, {"documents_per_second": 3.0})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    for name in (b"train/loss", b"train/exact_match", b"documents_per_second"):
        assert name in content


def events_in(workdir):
    """Every event, read as TensorBoard does: length, its checksum, content, its checksum."""
    (file,) = workdir.glob("events.out.tfevents.*")
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_events_can_be_read_at_once_and_hide_what_a_stopped_run_wrote_later(tmp_path):
    with MetricsWriter(tmp_path, resume_after=2) as writer:
        writer.write(3, "train", {"loss": 0.5})
        version, start, loss = events_in(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, SessionLog.START)
    assert (loss.step, loss.summary.value[0].tag) == (3, "train/loss")
    assert loss.summary.value[0].simple_value == 0.5
    assert len(events_in(tmp_path)) == 3


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_event_that_cannot_be_written_is_an_error_where_it_comes_from(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path) as writer:
        monkeypatch.setattr(RecordWriter, "write", full)
        with pytest.raises(OSError, match="No space left"):
            writer.write(1, "train", {"loss": 0.5})


def test_events_are_closed_where_lines_cannot_be(tmp_path):
    writer = MetricsWriter(tmp_path)
    events_file = writer._events._py_recordio_writer._writer
    lines_file = writer._lines

    class Full:
        close = full

    writer._lines = Full()
    with pytest.raises(OSError, match="No space left"), writer:
        pass
    lines_file.close()
    assert events_file.closed
