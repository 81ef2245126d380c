"""Training steps on meshes of eight devices, which a CPU has in a process of its own."""

import json
import re

import numpy as np
import pytest

from tests.helpers.several_devices import result_of

STEPS = 20
MESHES = {
    "one": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "all": (2, 2, 2),
    "tensor": (1, 1, 8),
}

SCRIPT = """
import dataclasses, functools, json, re, sys
import jax
import jax.numpy as jnp
import numpy as np
from pid_jax import models, prompt_in_decoder, sharding
from pid_jax.backends import prompt_attention
from pid_jax.backends.settings import BY_PLATFORM
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.training import compiled, config as configuration, optimizer, step
from tests.helpers.tiny_t5 import TINY

steps, meshes = json.loads(sys.argv[1])
sizes = {"d_model": 64, "d_kv": 8, "num_heads": 8, "d_ff": 128, "vocab_size": 1024}
config = configuration.default()
shape = BatchShape(40, 24, 3, 4, 6)


def batches(steps):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        prompts = shape.documents, shape.prompts
        lengths = rng.integers(1, shape.target_tokens + 1, prompts)
        yield Batch(
            documents=rng.integers(2, 1024, (shape.documents, shape.document_tokens), np.int32),
            document_mask=np.arange(shape.document_tokens)
            < rng.integers(4, shape.document_tokens + 1, (shape.documents, 1)),
            prompts=rng.integers(2, 1024, (*prompts, shape.prompt_tokens), np.int32),
            prompt_mask=np.ones((*prompts, shape.prompt_tokens), bool),
            targets=rng.integers(2, 1024, (*prompts, shape.target_tokens), np.int32),
            target_mask=np.arange(shape.target_tokens) < lengths[..., None],
        )


@functools.cache
def new_params(model):
    return jax.device_get(models.init_params(model, jax.random.key(0)))  # steps donate theirs


def train(mesh, steps=4, scan_layers=False, micro_batches=1):
    config.train.micro_batches = micro_batches
    devices = jax.devices()[: int(np.prod(mesh))]
    mesh = sharding.make_mesh(*mesh, devices=devices)
    layers = {"num_decoder_layers": 2 if scan_layers else 1}
    model = models.build(TINY | sizes | layers, scan_layers=scan_layers)
    update = optimizer.build(config)
    shardings = step.state_shardings(mesh, model, update)
    program, _ = compiled.training_programs(
        config, mesh, model, update, optimizer.learning_rate(config), shardings
    )
    state = jax.device_put(step.initial_state(new_params(model), update, 1), shardings)
    losses = []
    text = ""
    for batch in batches(steps):
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        if not text:
            text = program.compile(state, batch, label=shape).as_text()
        state, report = program(state, batch, label=shape)
        losses.append(float(report["loss"]))
    return losses, sorted(set(re.findall(r"\\b[a-z]+\\d*\\[[\\d,]+\\]", text))), [
        line.split(" = ")[1].split("{")[0]
        for line in text.splitlines() if re.search(r" all-gather(-start)?\\(", line)
    ]


seen = {name: train(mesh, steps) for name, mesh in meshes.items()}
seen["scanned"] = train(meshes["fsdp"], scan_layers=True)
seen["micro-batches"] = train(meshes["fsdp"], micro_batches=5)
seen["micro-batches, one device"] = train(meshes["one"], micro_batches=5)
# Attention as on a GPU, in blocks of one document on each device.
BY_PLATFORM["cpu"] = dataclasses.replace(BY_PLATFORM["cpu"], document_kernel="xla")
prompt_attention.STORED_SCORES = 3 * 8 * 9 * 24
seen["blocks"] = train(meshes["fsdp"])
json.dump(seen, sys.stdout)
"""


@pytest.fixture(scope="module")
def seen():
    return result_of(SCRIPT, json.dumps([STEPS, MESHES]), devices=8)


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mesh", ["data", "fsdp", "all", "tensor", "blocks"])
def test_losses_are_those_of_one_device(seen, mesh):
    losses, one = seen[mesh][0], seen["one"][0]
    assert len(losses) == (4 if mesh == "blocks" else STEPS)
    assert len(set(one)) == STEPS
    np.testing.assert_allclose(losses, one[: len(losses)], rtol=1e-5)


def test_micro_batches_of_a_mesh_are_those_of_one_device(seen):
    ours, one = (seen[name][0] for name in ("micro-batches", "micro-batches, one device"))
    np.testing.assert_allclose(ours, one, rtol=1e-5)


@pytest.mark.parametrize("mesh", ["data", "fsdp", "all", "blocks", "scanned", "micro-batches"])
def test_no_device_has_the_activations_of_the_whole_batch(seen, mesh):
    whole = re.compile(r"f32\[(40,\d+|\d+,40),")  # documents, or prompts and documents
    assert any(re.match(whole, shape) for shape in seen["one"][1])
    assert [shape for shape in seen[mesh][1] if re.match(whole, shape)] == []


@pytest.mark.parametrize("mesh", ["fsdp", "all", "blocks", "scanned", "micro-batches"])
def test_only_parameters_are_gathered(seen, mesh):
    sizes = {size for shape in seen[mesh][2] for size in re.findall(r"\d+", shape[4:])}
    # Of kernels and the table, whole or split over the axis tensor. A scan stacks one at a time.
    assert sizes <= {"64", "128", "1024", "32", "512", "1"}
    assert sizes


def test_attention_in_blocks_is_a_loop_over_the_documents_of_each_device(seen):
    shares = {shape for shape in seen["fsdp"][1] if shape.startswith("f32[3,5,8,9,24]")}
    assert shares
    assert not shares & set(seen["blocks"][1])
    assert "f32[3,1,8,9,24]" in seen["blocks"][1]
