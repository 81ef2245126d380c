"""Adapters and frozen parameters on meshes of eight devices, and in two processes."""

import json

import numpy as np
import pytest

from pid_jax.inference.model import PidModel
from tests.helpers import several_processes
from tests.helpers.several_devices import result_of

MESHES = {"one": (1, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2), "tensor": (1, 1, 8)}

SCRIPT = """
import functools, json, sys
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from pid_jax import models, sharding
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.training import assembly, compiled, config as configuration, optimizer, step
from pid_jax.training import trained_part
from tests.helpers.tiny_t5 import TINY

meshes = json.loads(sys.argv[1])
sizes = {"d_model": 64, "d_kv": 8, "num_heads": 8, "d_ff": 128, "vocab_size": 1024}
config = configuration.default()
config.adapter.rank = 4
config.train.ema_decay = 0.5
config.optimizer.learning_rate = 0.05
config.optimizer.warmup_steps = 1
shape = BatchShape(16, 24, 3, 4, 6)


def batches():
    rng = np.random.default_rng(0)
    for _ in range(6):
        prompts = shape.documents, shape.prompts
        yield Batch(
            documents=rng.integers(2, 1024, (shape.documents, shape.document_tokens), np.int32),
            document_mask=np.ones((shape.documents, shape.document_tokens), bool),
            prompts=rng.integers(2, 1024, (*prompts, shape.prompt_tokens), np.int32),
            prompt_mask=np.ones((*prompts, shape.prompt_tokens), bool),
            targets=rng.integers(2, 1024, (*prompts, shape.target_tokens), np.int32),
            target_mask=np.ones((*prompts, shape.target_tokens), bool),
        )


@functools.cache
def new_params(model):
    return jax.device_get(models.init_params(model, jax.random.key(0)))  # steps donate theirs


def train(mesh):
    devices = jax.devices()[: int(np.prod(mesh))]
    mesh = sharding.make_mesh(*mesh, devices=devices)
    model = assembly.build_model(config, models.config_from_hf(TINY | sizes))
    update = optimizer.build(config)
    parts = trained_part.parts_of_state(config, model)
    shardings = step.state_shardings(mesh, model, update, **parts)
    program, _ = compiled.training_programs(config, mesh, model, update, None, shardings)
    state = jax.device_put(step.initial_state(new_params(model), update, 1, **parts), shardings)
    losses = []
    for batch in batches():
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        state, report = program(state, batch, label=shape)
        losses.append(float(report["loss"]))
    layer = ("decoder", "layers_0", "self_attention", "query")
    return losses, {
        name: [
            str(flatten_dict(tree)[(*layer, name)].sharding.shard_shape(
                flatten_dict(tree)[(*layer, name)].shape
            ))
            for tree in trees
        ]
        for name, trees in {
            "kernel_lora_a": (state.params, state.ema, state.opt_state[1].mu),
            "kernel_lora_b": (state.params, state.ema, state.opt_state[1].mu),
            "kernel": (state.frozen,),
        }.items()
    }


print(json.dumps({name: train(mesh) for name, mesh in meshes.items()}))
"""


@pytest.fixture(scope="module")
def seen():
    return result_of(SCRIPT, json.dumps(MESHES), devices=8)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one"])
def test_losses_are_those_of_one_device(seen, mesh):
    losses, expected = seen[mesh][0], seen["one"][0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert expected[-1] != expected[0]


@pytest.mark.slow
def test_matrices_their_average_and_their_moments_are_split_as_their_kernel(seen):
    """A kernel of 64 inputs and 64 outputs: fsdp splits inputs, tensor splits outputs."""
    expected = {
        "fsdp": {"kernel_lora_a": "(8, 4)", "kernel_lora_b": "(4, 64)", "kernel": "(8, 64)"},
        "all": {"kernel_lora_a": "(32, 4)", "kernel_lora_b": "(4, 32)", "kernel": "(32, 32)"},
        "tensor": {"kernel_lora_a": "(64, 4)", "kernel_lora_b": "(4, 8)", "kernel": "(64, 8)"},
    }
    for mesh, shapes in expected.items():
        for name, shape in shapes.items():
            assert set(seen[mesh][1][name]) == {shape}, (mesh, name)


def train(workdir, *overrides, steps, **options):
    command = [
        *("train.py", "--config=tests/helpers/tiny_config.py", f"--workdir={workdir}"),
        *("--config.adapter.rank=2", "--config.train.ema_decay=0.5", *overrides),
        *(f"--config.train.steps={steps}", "--config.data.batch_size=8"),
        *("--config.evaluation.documents=8", "--config.optimizer.schedule=constant"),
    ]
    ends = several_processes.run(command, **options)
    assert [one.status for one in ends] == [0] * len(ends), ends


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.mark.slow
def test_two_processes_save_the_frozen_parameters_once_and_one_goes_on(tmp_path):
    """Both write their shares: the mesh splits parameters between the processes."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, steps=4, count=1, **cache)
    train(two, "--config.mesh.data=1", "--config.mesh.fsdp=2", steps=2, count=2, **cache)
    train(two, steps=4, count=1, **cache)
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    first, second = (PidModel.from_pretrained(workdir).params for workdir in (one, two))
    # Frozen, so the two processes saved it and the one process read it.
    for name, leaf in first["encoder"]["final_norm"].items():
        np.testing.assert_array_equal(leaf, second["encoder"]["final_norm"][name])
    for params in (first, second):
        assert np.isfinite(params["decoder"]["final_norm"]["scale"]).all()
