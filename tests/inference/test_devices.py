"""Decoding on several devices, which a CPU has once XLA is told so: in a process of its own."""

import numpy as np
import pytest

from tests.helpers.several_devices import result_of

SCRIPT = """
import json, sys
import jax
from pid_jax import models, sharding
from pid_jax.backends import int8
from pid_jax.decoding.report import DecodingReport
from pid_jax.inference.model import PidModel
from tests.helpers.tiny_t5 import TINY

model = models.build(TINY)
params = models.init_params(model, jax.random.key(0))
documents = [[5 + i, 6, *range(2, 3 + i)] for i in range(4)]
prompts = [[[7 + i + j] * (1 + j) for j in range(2)] for i in range(4)]
found, engines, used = {}, {}, {}


def decode(name, count=4, place=None, change=lambda params: params):
    ours = PidModel(model, change(params if place is None else jax.device_put(params, place)))
    report = DecodingReport()
    rows = ours.generate(documents[:count], prompts[:count], max_new_tokens=5, report=report)
    found[name] = [[one.tokens for one in row] for row in rows]
    engines[name] = len(ours._executor)
    used[name] = [
        sorted(device.id for device in jax.tree.leaves(ours._executor[i].params)[0].devices())
        for i in range(engines[name]) if i in ours._executor._decoders
    ]
    return report.batches, ours


batches, _ = decode("all devices")
decode("one document", count=1)
decode("placed", place=jax.devices()[2])
mesh = sharding.make_mesh(1, 2, 2)
shardings = sharding.param_shardings(mesh, models.logical_axes(model))
_, split = decode("split", place=shardings)
decode("8 bits", change=model.int8_params)
decode("8 bits, split", place=shardings, change=int8.quantize)
warm = PidModel(model, params)
warmed = warm.warm_up(6, 2, 2, max_new_tokens=5, documents=4)
programs = [one.program for one in warmed.compilations]
warm.generate(documents, prompts, max_new_tokens=5, compact=True)
late = [one.program for one in warm.programs.compilations[len(programs):]]
streamed = []
for partial in split.stream(documents, prompts, max_new_tokens=5):
    if partial.done:
        streamed.append(partial.generation.tokens)
scoring = PidModel(model, params)
targets = [[[3, 4], [5]] for _ in documents]
scores = [scoring.score(documents, prompts, targets), split.score(documents, prompts, targets)]
scored_on = sorted(scoring._executor._decoders)
json.dump(
    [found, engines, used, batches, programs, late, streamed, scores, scored_on], sys.stdout
)
"""


@pytest.fixture(scope="module")
def seen():
    return result_of(SCRIPT, devices=4)


def test_every_device_takes_a_batch_and_answers_are_the_same(seen):
    found, engines, used, batches, *_ = seen
    assert engines["all devices"] == 4
    assert used["all devices"] == [[0], [1], [2], [3]]
    assert batches == 4  # of what one device would have taken at once
    assert found["all devices"] == found["placed"] == found["split"]
    assert found["one document"] == found["all devices"][:1]


def test_a_device_without_work_gets_no_parameters(seen):
    assert seen[2]["one document"] == [[0]]


def test_parameters_that_were_placed_stay_where_they_are(seen):
    assert (seen[1]["placed"], seen[2]["placed"]) == (1, [[2]])
    assert (seen[1]["split"], seen[2]["split"]) == (1, [[0, 1, 2, 3]])
    assert sorted(seen[6]) == sorted(tokens for row in seen[0]["split"] for tokens in row)


def test_weights_in_8_bits_are_on_every_device_or_split(seen):
    found, _, used = seen[:3]
    assert found["8 bits"] == found["8 bits, split"]
    assert (used["8 bits"], used["8 bits, split"]) == ([[0], [1], [2], [3]], [[0, 1, 2, 3]])


def test_every_device_scores_a_batch(seen):
    scores, scored_on = seen[7:]
    assert scored_on == [0, 1, 2, 3]
    assert len({score for row in scores[0] for score in row}) == 8
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_all_devices_are_warmed_up(seen):
    assert sorted(seen[4]) == ["decode"] * 4 + ["encode"] * 4 + ["prefill"] * 4
    assert seen[5] == []
