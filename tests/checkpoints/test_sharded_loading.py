"""Loading on a mesh of eight devices, which a CPU has in a process of its own."""

import json
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh

from pid_jax import models
from pid_jax.checkpoints import placement
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers import tiny_families
from tests.helpers.several_devices import result_of

MESHES = {"fsdp": (1, 8, 1), "all": (2, 2, 2), "tensor": (1, 2, 4), "data": (8, 1, 1)}

SCRIPT = """
import json, math, sys, tempfile
from pathlib import Path
import grain
import jax
import jax.numpy as jnp
import numpy as np
from pid_jax import models, sharding
from pid_jax.checkpoints import huggingface, placement, stored_tensor
from pid_jax.checkpoints.orbax import CONFIG, MODEL, RunCheckpoints
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers import tiny_families

meshes = json.loads(sys.argv[1])
names = ("data", "fsdp", "tensor")
read, received = [], {}
call, put = stored_tensor.StoredTensor.__call__, jax.device_put


def counted_read(self, *bounds):
    values = call(self, *bounds)
    read.append(values.nbytes)
    return values


def counted_put(x, device=None, **options):
    if isinstance(device, jax.Device):
        received[device.id] = received.get(device.id, 0) + x.nbytes
    return put(x, device, **options)


def bytes_on_devices(arrays):
    # Arrays may have a buffer in common.
    buffers = {
        (shard.device.id, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
        for array in arrays for shard in array.addressable_shards
    }
    return [sum(size for (of, _), size in buffers.items() if of == device) for device in range(8)]


def load(directory, mesh, dtype="float32"):
    read.clear(), received.clear()
    before = {id(array) for array in jax.live_arrays()}
    stored_tensor.StoredTensor.__call__, jax.device_put = counted_read, counted_put
    loaded = PidModel.from_pretrained(directory, dtype, mesh=mesh)
    stored_tensor.StoredTensor.__call__, jax.device_put = call, put
    alive = [array for array in jax.live_arrays() if id(array) not in before]
    return loaded, bytes_on_devices(alive)


def equal(one, other):
    same = lambda a, b: a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
    return jax.tree.all(jax.tree.map(same, one, other))


def shares(model, sizes, itemsize):
    '''Bytes of one device, by the table of axes.'''
    mesh = sharding.make_mesh(*sizes)
    of = sharding.param_shardings(mesh, models.logical_axes(model))
    shapes = models.abstract_params(model)
    share = lambda one, leaf: math.prod(one.shard_shape(leaf.shape)) * itemsize
    return sum(jax.tree.leaves(jax.tree.map(share, of, shapes)))


def seen_of(directory, loaded_dtype, on=tuple(meshes)):
    whole = PidModel.from_pretrained(directory, loaded_dtype)
    seen = {}
    for name in on:
        sizes = meshes[name]
        loaded, alive = load(directory, dict(zip(names, sizes)), loaded_dtype)
        itemsize = jax.tree.leaves(whole.params)[0].dtype.itemsize
        seen[name] = {
            "equal": equal(loaded.params, whole.params),
            "share": shares(whole.model, sizes, itemsize),
            "received": sorted(received.values()),
            "alive": alive,
            "largest_read": max(read, default=0),
            "all_read": sum(read),
        }
    return seen


seen = {}
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    for name, variant in tiny_families.VARIANTS.items():
        model = models.build(variant)
        params = models.init_params(model, jax.random.key(0))
        for dtype in ("float32", "bfloat16"):
            directory = folder / f"{name} {dtype}"
            stored = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            huggingface.SHARD_BYTES = 5 * 10**9 if dtype == "float32" else 3000
            PidModel(model, stored).save_pretrained(directory)
            files = len(list(directory.glob("*.safetensors")))
            sizes = [leaf.nbytes for leaf in jax.tree.leaves(stored)]
            seen[f"{name}, {dtype}"] = {
                "files": files,
                "largest": max(sizes),
                "stored": sum(sizes),
                "meshes": seen_of(directory, "float32")
                if dtype == "float32" else seen_of(directory, "auto", ["fsdp", "all"]),
            }
    # bfloat16 in the files, float32 in memory.
    _, tiny = load(directory, {"data": 1, "fsdp": -1}, "float32")
    seen["converted"] = [max(tiny), shares(model, (1, 8, 1), 4)]

    # A run on a mesh, loaded on others.
    model = models.build(tiny_families.VARIANTS["t5"])
    params = models.init_params(model, jax.random.key(0))
    of = sharding.param_shardings(sharding.make_mesh(1, 4, 2), models.logical_axes(model))
    run = folder / "run"
    huggingface.save_config(run / MODEL, model.config, None)
    (run / CONFIG).write_text(json.dumps({"checkpoint": {"best_metric": "loss"}}))
    numbers = iter(grain.MapDataset.range(9).to_iter_dataset())
    with RunCheckpoints(run, recent=1, best_metric="loss") as checkpoints:
        checkpoints.save(1, {"params": jax.device_put(params, of)}, numbers)
    seen["run"] = {"meshes": seen_of(run, "float32")}
    first = PidModel.from_pretrained(run)
    seen["run on one device"] = equal(first.params, params)

    # Results.
    directory = folder / "t5 float32"
    documents, prompts = [[5, 6, 7], [8, 9]], [[[10], [11, 12]], [[13]]]
    answers = []
    for mesh in (None, {"tensor": 4, "fsdp": 2}):
        loaded = PidModel.from_pretrained(directory, mesh=mesh)
        rows = loaded.generate(documents, prompts, max_new_tokens=5)
        answers.append([[one.tokens for one in row] for row in rows])
    seen["answers"] = answers

    # Numbers that are not finite, in a share of one device.
    from safetensors.numpy import load_file, save_file
    tensors = load_file(directory / "model.safetensors")
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"  # transposed here
    tensors[name][3, 13] = np.nan
    tensors[name][15, 2] = np.inf
    save_file(tensors, directory / "model.safetensors")
    errors = []
    for mesh in (None, *({**dict(zip(names, sizes))} for sizes in meshes.values())):
        try:
            PidModel.from_pretrained(directory, mesh=mesh)
        except UserError as error:
            errors.append(str(error).replace(str(directory), "there"))
    spoiled = jax.tree.map(lambda leaf: leaf, params)
    kernel = spoiled["encoder"]["layers_0"]["feed_forward"]["wi"]["kernel"]
    spoiled["encoder"]["layers_0"]["feed_forward"]["wi"]["kernel"] = kernel.at[9, 20].set(jnp.nan)
    with RunCheckpoints(run, recent=1, best_metric="loss") as checkpoints:
        checkpoints.save(2, {"params": jax.device_put(spoiled, of)}, numbers)
    try:
        PidModel.from_pretrained(run, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    except UserError as error:
        errors.append(str(error).replace(str(run), "there"))
    seen["errors"] = errors
json.dump(seen, sys.stdout)
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen():
    return result_of(SCRIPT, json.dumps(MESHES), devices=8)


VARIANTS = [
    f"{name}, {dtype}" for name in tiny_families.VARIANTS for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize("name", [*VARIANTS, "run"])
def test_a_mesh_has_the_numbers_of_one_device(seen, name):
    assert all(of_mesh["equal"] for of_mesh in seen[name]["meshes"].values())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_device_receives_its_share_only(seen, name):
    for of_mesh in seen[name]["meshes"].values():
        assert of_mesh["received"] == [of_mesh["share"]] * 8
        assert of_mesh["alive"] == [of_mesh["share"]] * 8


@pytest.mark.parametrize("name", VARIANTS)
def test_the_host_reads_every_share_once_and_no_more_than_a_tensor_at_a_time(seen, name):
    meshes = seen[name]["meshes"]
    for of_mesh in meshes.values():
        assert of_mesh["largest_read"] <= seen[name]["largest"]
        assert of_mesh["all_read"] <= seen[name]["stored"]  # sinusoids are in no file
    assert meshes["fsdp"]["largest_read"] == seen[name]["largest"] / 8
    if name.endswith("float32"):
        assert meshes["data"]["largest_read"] == seen[name]["largest"]


def test_several_files_are_read(seen):
    assert all(seen[name]["files"] > 2 for name in VARIANTS if name.endswith("bfloat16"))


def test_a_share_has_the_dtype_of_the_load(seen):
    in_memory, share = seen["converted"]
    assert in_memory == share


def test_a_run_of_another_mesh_is_loaded_by_shares(seen):
    for of_mesh in seen["run"]["meshes"].values():
        assert of_mesh["alive"] == [of_mesh["share"]] * 8
    assert seen["run on one device"]


def test_a_model_on_a_mesh_gives_the_same_answers(seen):
    one, several = seen["answers"]
    assert one == several
    assert any(tokens for row in one for tokens in row)


def test_numbers_that_are_not_finite_are_named_as_on_one_device(seen):
    *errors, of_run = seen["errors"]
    assert len(errors) == 1 + len(MESHES)
    assert len(set(errors)) == 1
    # [in, out] here, so that [2, 15] is before [13, 3].
    assert "SelfAttention.q.weight holds inf, first at [2, 15]" in errors[0]
    assert "encoder/layers_0/feed_forward/wi/kernel holds nan, first at [9, 20]" in of_run


T5_11B = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 1024,
    "d_kv": 128,
    "d_ff": 65536,
    "num_layers": 24,
    "num_heads": 128,
}
GEMMA_9B = {
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}
GEMMA_2B = GEMMA_9B | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LARGE = {
    "t5-11b": (T5_11B, 11.3e9),
    "t5gemma-9b-2b": ({"model_type": "t5gemma", "encoder": GEMMA_9B, "decoder": GEMMA_2B}, 12.3e9),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("sizes", [(1, 16, 4), (1, 8, 1)], ids=["v5p:4x4x4", "8 x 80 GB"])
def test_large_models_are_divided_evenly(name, sizes):
    description, parameters = LARGE[name]
    model = models.build(description)
    mesh = AbstractMesh(sizes, ("data", "fsdp", "tensor"))
    shardings = placement.shardings(mesh, model)
    shapes = {
        path: leaf.shape for path, leaf in flatten_dict(models.abstract_params(model)).items()
    }
    count = sum(map(math.prod, shapes.values()))
    assert count == pytest.approx(parameters, rel=0.05)
    share = sum(math.prod(shardings[path].shard_shape(shape)) for path, shape in shapes.items())
    assert share == pytest.approx(count / math.prod(sizes), rel=0.01)


def test_a_mesh_that_does_not_divide_a_parameter_is_refused():
    model = models.build(tiny_families.VARIANTS["t5"])
    mesh = AbstractMesh((1, 1, 5), ("data", "fsdp", "tensor"))
    with pytest.raises(UserError, match=r"tensor=5 splits .* into 5 parts, which do not divide"):
        placement.shardings(mesh, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": {"tensors": 1}}, "pass a dict with sizes for 'data', 'fsdp', 'tensor'"),
        ({"mesh": {"tensor": 1.5}}, r"mesh\['tensor'\] must be a whole number"),
        ({"mesh": {"tensor": 1}, "weights": "int8"}, 'weights="int8" is not supported with a mesh'),
        ({"mesh": {"data": 1, "tensor": 3}}, "a mesh of data=1, fsdp=1, tensor=3 does not fit"),
    ],
)
def test_meshes_that_cannot_be_used_are_refused(checkpoint, options, message):
    with pytest.raises(UserError, match=message):
        PidModel.from_pretrained(checkpoint, **options)


def test_a_mesh_of_one_device_is_allowed(checkpoint):
    loaded = PidModel.from_pretrained(checkpoint, mesh={"data": 1})
    expected = PidModel.from_pretrained(checkpoint)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
