"""Runs with packed rows: the losses of runs without, and exact resumption."""

import json

import numpy as np
import pytest

from pid_jax.training import loop
from tests.helpers import tiny_config

STEPS = 20

pytestmark = pytest.mark.slow


def config(packing, **train):
    made = tiny_config.get_config()
    made.data.packing = packing
    made.train.dropout_rate = 0.0
    made.optimizer.schedule = "constant"  # the others depend on the number of steps
    made.evaluation.every_steps = 10
    made.checkpoint.every_steps = 10
    made.train.steps = STEPS
    made.train.update(train)
    return made


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("packed")
    assert loop.train(config(True), workdir) == STEPS
    return workdir


def test_losses_and_evaluations_are_those_without_packing(packed, tmp_path):
    loop.train(config(False), tmp_path)
    ours, theirs = lines(packed), lines(tmp_path)
    assert len(ours) == len(theirs) == STEPS + 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert (one["split"], one["step"]) == (other["split"], other["step"])
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=0, atol=1e-5)
        for count in ("target_tokens", "subtasks", "exact_match", "joint_exact_match"):
            assert one.get(count) == other.get(count)


def test_a_resumed_run_repeats_the_run_bit_for_bit(packed, tmp_path):
    loop.train(config(True, steps=10), tmp_path)
    loop.train(config(True), tmp_path)
    assert lines(tmp_path) == lines(packed)


def test_parts_of_a_batch_have_its_loss(packed, tmp_path):
    loop.train(config(True, micro_batches=2, steps=10), tmp_path)
    whole = [line["loss"] for line in lines(packed)[:10]]
    np.testing.assert_allclose([line["loss"] for line in lines(tmp_path)[:10]], whole, atol=1e-5)
