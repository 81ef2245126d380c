import errno
import json
import os
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from pid_jax.errors import UserError
from pid_jax.training import config as configuration
from pid_jax.training import loggers
from pid_jax.training.loggers import TensorBoard, WeightsAndBiases


def events_in(workdir):
    """Every event, read as TensorBoard does: length, its checksum, content, its checksum."""
    (file,) = workdir.glob("events.out.tfevents.*")
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_has_every_scalar_at_once_and_hides_what_a_stopped_run_wrote_later(tmp_path):
    logger = TensorBoard(tmp_path, {}, 2)
    logger.write(3, "train", {"loss": 0.5})
    version, start, loss = events_in(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, SessionLog.START)
    assert (loss.step, loss.summary.value[0].tag) == (3, "train/loss")
    assert loss.summary.value[0].simple_value == 0.5
    logger.write(4, "", {"mfu": 0.25})
    logger.close()
    assert [event.summary.value[0].tag for event in events_in(tmp_path)[2:]] == [
        "train/loss",
        "mfu",
    ]


def test_an_event_that_cannot_be_written_is_an_error_where_it_comes_from(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = TensorBoard(tmp_path, {}, 0)
    with monkeypatch.context() as patched:
        patched.setattr(RecordWriter, "write", full)
        with pytest.raises(OSError, match="No space left"):
            logger.write(1, "train", {"loss": 0.5})
    logger.close()


class Run:
    """As `wandb.init` returns it."""

    def __init__(self, options):
        self.options, self.logged, self.finished = options, [], 0

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """The module, without the service."""
    module = types.ModuleType("wandb")
    module.runs = []

    def init(**options):
        module.runs.append(Run(options))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    return module


def test_a_resumed_run_continues_its_run_of_weights_and_biases(tmp_path, wandb, monkeypatch):
    workdir = tmp_path / "mine"
    workdir.mkdir()
    first = WeightsAndBiases(workdir, {"seed": 1}, 0)
    first.write(2, "train", {"loss": 0.5})
    first.write(2, "", {"mfu": 0.4})
    first.close()
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    WeightsAndBiases(workdir, {"seed": 1}, 2).close()
    one, two = wandb.runs
    assert one.logged == [(2, {"train/loss": 0.5}), (2, {"mfu": 0.4})]
    assert (one.finished, two.finished) == (1, 1)
    assert one.options["id"] == two.options["id"] == (workdir / "wandb_run_id").read_text()
    assert one.options["resume"] == "allow"
    assert one.options["config"] == {"seed": 1}
    assert one.options["name"] == "mine"
    assert (one.options["project"], two.options["project"]) == ("pid_jax", "theirs")


def test_without_wandb_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'config\.train\.loggers has "wandb".*pip install wandb'):
        loggers.check_importable(("tensorboard", "wandb"))


def test_wandb_is_imported_only_where_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    loggers.check_importable(("tensorboard", "tests.training.test_loggers:Mine"))


@pytest.mark.parametrize("name", ["tensorbord", "", 3])
def test_a_name_that_is_no_logger_is_refused(name):
    with pytest.raises(UserError, match=r"choose from tensorboard, wandb, or .* module:Class"):
        loggers.check(("tensorboard", name))


def test_a_class_that_cannot_be_imported_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"logger nowhere\.at_all:Mine: the module"):
        loggers.check_importable(("nowhere.at_all:Mine",))


class Mine:
    """A logger of a user's own: one file for each call."""

    def __init__(self, workdir, config, resume_after):
        self.file = workdir / "mine.jsonl"
        self._add(["opened", config["seed"], resume_after])

    def write(self, step, prefix, metrics):
        self._add([step, prefix, sorted(metrics)])

    def close(self):
        self._add(["closed"])

    def _add(self, line):
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Broken(Mine):
    def __init__(self, *_):
        raise RuntimeError("cannot open")


def lines(workdir):
    return [json.loads(line) for line in (workdir / "mine.jsonl").read_text().splitlines()]


def of(*names):
    config = configuration.default()
    with config.unlocked():
        config.train.loggers = names
    return config


def test_a_logger_of_ones_own_is_opened_and_closed(tmp_path):
    with loggers.opened(tmp_path, of(f"{__name__}:Mine"), resume_after=7) as opened:
        opened[0].write(8, "task", {"f1": 0.5})
    assert lines(tmp_path) == [["opened", 0, 7], [8, "task", ["f1"]], ["closed"]]


def test_loggers_are_closed_where_the_next_one_cannot_be_opened(tmp_path):
    config = of(f"{__name__}:Mine", f"{__name__}:Broken")
    with (
        pytest.raises(RuntimeError, match="cannot open"),
        loggers.opened(tmp_path, config, resume_after=0),
    ):
        pass
    assert lines(tmp_path)[-1] == ["closed"]


def test_the_command_line_names_several():
    override = "--config.train.loggers=('tensorboard','wandb')"
    config = configuration.with_overrides(configuration.default(), [override], "the defaults")
    assert config.train.loggers == ("tensorboard", "wandb")
