import json

from pid_jax.training.metrics_writer import METRICS, MetricsWriter, keep_until


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
    keep_until(path, 5)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_whole_number_cut_short_is_dropped_too(tmp_path):
    # It would parse, as another number.
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": 2}')
    keep_until(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_tensorboard_events_hold_every_scalar(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(7, "train", {"loss": 0.5, "exact_match": 1.0})
        writer.write_events(7, {"documents_per_second": 3.0})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    for name in (b"train/loss", b"train/exact_match", b"documents_per_second"):
        assert name in content
