"""A run says what memory it needs before step 1, and refuses to start where that is too much."""

import dataclasses
import logging
import re

import jax
import pytest
from ml_collections import ConfigDict

from pid_jax import device_memory
from pid_jax.data.batching import BatchShape
from pid_jax.errors import UserError
from pid_jax.programs import CompiledFunction
from pid_jax.training import config as configuration
from pid_jax.training import loop, memory
from tests.helpers import tiny_config

GIB = 1 << 30


def config(**train):
    config = tiny_config.get_config()
    config.train.update({"steps": 4, **train})
    config.optimizer.warmup_steps = 1
    return config


def with_memory(monkeypatch, size):
    monkeypatch.setattr(device_memory, "of_device", lambda device: size)


def test_a_run_that_needs_more_than_a_device_has_is_refused_before_step_1(tmp_path, monkeypatch):
    with_memory(monkeypatch, 100_000)
    with pytest.raises(UserError) as error:
        loop.train(config(), tmp_path)
    message = str(error.value)
    assert "a device has 97.7 KiB" in message
    assert "--config.optimizer.name=adafactor" in message
    assert "--config.train.check_memory=False" in message
    assert not (tmp_path / "config.json").exists()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_check_can_be_a_warning(tmp_path, monkeypatch, caplog):
    with_memory(monkeypatch, 100_000)
    with caplog.at_level(logging.INFO, "pid_jax"):
        assert loop.train(config(check_memory=False), tmp_path) == 4
    (warning,) = [one for one in caplog.messages if one.startswith("the run needs")]
    assert "a device has 97.7 KiB" in warning


def test_the_table_has_the_bytes_of_the_programs(tmp_path, monkeypatch, caplog):
    """The parameters in float32, and AdamW's two moments of each with its two counters."""
    with_memory(monkeypatch, None)
    with caplog.at_level(logging.INFO, "pid_jax"):
        loop.train(config(), tmp_path)
    (table,) = [one for one in caplog.messages if one.startswith("memory of each device")]
    (size,) = [one for one in caplog.messages if " parameters, " in one]
    parameters = int(size.split(" with ")[1].split()[0].replace(",", ""))
    rows = {line[:18].strip(): line[18:] for line in table.splitlines()[1:]}
    assert rows["parameters"] == device_memory.size_text(4 * parameters)
    assert rows["optimizer"] == device_memory.size_text(8 * parameters + 8)
    assert rows["training step"].endswith(
        "for 4 documents of 64 tokens, 4 prompts of 11, targets of 14"
    )
    assert " of " not in rows["needed in all"]


def test_a_refusal_of_the_compiler_is_an_error_with_its_figures(tmp_path, monkeypatch):
    def refuse(self, *shapes, label):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.29G of 15.75G hbm. Exceeded hbm capacity by 4.54G."
        )

    monkeypatch.setattr(CompiledFunction, "compile", refuse)
    with pytest.raises(
        UserError, match=r"training step: the run needs 20\.29 GiB .* has 15\.75 GiB"
    ):
        loop.train(config(), tmp_path)


def advice(*, optimizer=2 * GIB, devices=1, mesh=(1, 1), **changes):
    options = configuration.default()
    options.data.batch_size = 16
    for key, value in changes.items():
        section, name = key.split("__")
        options[section][name] = value
    return memory.remedies(
        options,
        devices=devices,
        mesh=dict(zip(("data", "fsdp"), mesh, strict=True)),
        parameter_bytes=GIB,
        optimizer_bytes=optimizer,
        memory_bytes=16 * GIB,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "--config.train.micro_batches=2"),
        ({"train__micro_batches": 4}, "--config.train.micro_batches=8"),
        ({"train__micro_batches": 8, "data__batch_size": 24}, "--config.train.micro_batches=12"),
        ({"train__micro_batches": 4, "data__batch_size": 20}, "--config.train.micro_batches=5"),
        ({"data__batch_size": 7}, "--config.train.micro_batches=7"),
        ({"mesh": (4, 2), "devices": 8}, "--config.train.micro_batches=2"),
        # Each part has one document of each of eight devices already.
        ({"mesh": (4, 2), "devices": 8, "train__micro_batches": 2}, None),
        ({"model__dtype": "float32"}, "--config.model.dtype=bfloat16"),
        ({"mesh": (8, 1), "devices": 8}, "--config.mesh.data=1 --config.mesh.fsdp=-1"),
    ],
)
def test_the_advice_divides_the_batch_over_devices(options, expected):
    given = advice(**options)
    if expected is None:
        assert not any("batch" in one for one in given)
    else:
        assert any(re.search(rf"{expected}(?!\d)", one) for one in given)


def test_where_the_state_alone_is_too_large_activations_are_not_the_remedy():
    given = " ".join(advice(optimizer=15 * GIB))
    assert "micro_batches" not in given
    assert "remat" not in given
    assert "adafactor" in given
    assert "adafactor" not in " ".join(advice(optimizer=0))


def test_the_advice_on_an_average_and_on_frozen_parameters_names_their_keys():
    averaged = " ".join(advice(optimizer=GIB, train__ema_decay=0.99))
    assert "--config.train.ema_decay=0," in averaged
    assert "adafactor" not in averaged
    both = " ".join(advice(optimizer=3 * GIB, train__ema_decay=0.99))
    assert "--config.train.ema_decay=0," in both
    assert "adafactor" in both
    assert "frozen_dtype" not in both
    assert "--config.model.frozen_dtype=bfloat16" in " ".join(advice(adapter__rank=8))


def test_of_several_tasks_the_one_that_needs_most_counts(tmp_path, monkeypatch, caplog):
    """One has the longer documents, the other more decoder tokens."""
    with_memory(monkeypatch, None)
    options = config(steps=2)
    options.data.mixture = ConfigDict(
        {
            "long": {"weight": 1.0, "task": options.data.task, "document_multiple": 1024},
            "wide": {"weight": 1.0, "task": options.data.task, "max_prompts": 11},
        }
    )
    for name in ("long", "wide"):
        options.data.mixture[name].options = options.data.options
    with caplog.at_level(logging.INFO, "pid_jax"):
        loop.train(options, tmp_path)
    (table,) = [one for one in caplog.messages if one.startswith("memory of each device")]
    (row,) = [line for line in table.splitlines() if "training step" in line]
    assert "of 1024 tokens" in row


def test_a_cpus_memory_is_shared_by_its_devices(monkeypatch, tmp_path):
    (device, *_) = jax.local_devices(backend="cpu")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device_memory, "_CONTROL_GROUP", limit)
    whole = device_memory.of_device(device)
    limit.write_text("max\n")
    assert device_memory.of_device(device) == whole
    limit.write_text("1048576\n")
    assert device_memory.of_device(device) == 1048576 // jax.local_device_count("cpu")


def test_an_accelerators_memory_is_that_of_its_allocator():
    @dataclasses.dataclass
    class Device:
        platform: str
        statistics: dict | None

        def memory_stats(self):
            return self.statistics

    assert device_memory.of_device(Device("tpu", {"bytes_limit": 5, "bytes_in_use": 2})) == 5
    assert device_memory.of_device(Device("gpu", None)) is None


def test_the_evaluation_counts_the_optimizer_state_beside_it():
    step = device_memory.Memory(arguments=7, outputs=5, aliased=5, temporaries=1)
    evaluation = device_memory.Memory(arguments=3, outputs=0, aliased=0, temporaries=6)
    needs = memory.RunMemory(2, 4, step, evaluation)
    assert needs.needed == 13
    shape = BatchShape(1, 2, 3, 4, 5)
    assert "needed in all   13 B of 20 B" in memory.table(needs, 20, (shape, shape))
