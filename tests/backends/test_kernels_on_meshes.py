"""A TPU's attention kernels on meshes of eight devices, interpreted on a CPU."""

import json

import numpy as np
import pytest

from tests.helpers.several_devices import result_of

MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "all": (2, 2, 2), "tensor": (2, 1, 4)}

SCRIPT = """
import dataclasses, json, sys
import jax
import jax.numpy as jnp
import numpy as np
from pid_jax import models, prompt_in_decoder, sharding
from pid_jax.backends import attention_kernels, settings
from pid_jax.data.batching import Batch
from pid_jax.programs import CompiledFunction, Programs
from tests.helpers.tiny_t5 import TINY

settings.BY_PLATFORM["cpu"] = dataclasses.replace(
    settings.BY_PLATFORM["cpu"], document_kernel="pallas"
)
# Four heads of 128, so that each of four devices has one.
sizes = {"d_model": 32, "d_kv": 128, "num_heads": 4, "num_decoder_layers": 1}
model = models.build(TINY | sizes | {"dropout_rate": 0.1})
params = models.init_params(model, jax.random.key(0))
rng = np.random.default_rng(0)
documents, prompts = 8, 3
batch = Batch(
    documents=rng.integers(2, 64, (documents, 40), np.int32),
    document_mask=np.arange(40) < rng.integers(4, 41, (documents, 1)),
    prompts=rng.integers(2, 64, (documents, prompts, 5), np.int32),
    prompt_mask=np.ones((documents, prompts, 5), bool),
    targets=rng.integers(2, 64, (documents, prompts, 4), np.int32),
    target_mask=np.arange(4) < rng.integers(1, 5, (documents, prompts, 1)),
)
called = []
on_device = attention_kernels._on_device

def counted(shape, kernel, query, *rest):
    called.append(query.shape)
    return on_device(shape, kernel, query, *rest)

attention_kernels._on_device = counted

def gradient(params, batch):
    def loss(params):
        return prompt_in_decoder.loss(model, params, batch, dropout_key=jax.random.key(1))[0]

    return jax.value_and_grad(loss)(params)

results = {}
for name, sizes in json.loads(sys.argv[1]).items():
    mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    where = sharding.param_shardings(mesh, models.logical_axes(model))
    rows = sharding.batch_sharding(mesh)
    function = CompiledFunction(
        Programs(), "gradient", gradient, in_shardings=(where, rows),
        out_shardings=(sharding.replicated(mesh), where),
    )
    called.clear()
    value, of_params = function(
        jax.device_put(params, where), jax.device_put(batch, rows), label="tiny"
    )
    results[name] = [
        sorted(set(called)),
        float(value),
        [np.asarray(x).tolist() for x in jax.tree.leaves(of_params)],
    ]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    return result_of(SCRIPT, json.dumps(MESHES), devices=8)


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one"])
def test_loss_and_gradients_are_those_of_one_device(results, mesh):
    _, loss, gradients = results["one"]
    _, on_mesh, of_mesh = results[mesh]
    assert on_mesh == pytest.approx(loss, rel=1e-6)
    for one, several in zip(gradients, of_mesh, strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_kernels_of_a_device_have_its_documents_and_heads(results, mesh):
    data, fsdp, tensor = MESHES[mesh]
    calls = [tuple(shape) for shape in results[mesh][0]]
    documents, width = 8 // (data * fsdp), 4 * 128 // tensor
    # Encoder, cross-attention, and self-attention with prompts as rows.
    assert (1, documents, 128, width) in calls
    assert (3, documents, 8, width) in calls
    assert {shape[3] for shape in calls} == {width}
    assert len(calls) == 3
