"""The parameters of inference on a mesh, in a process that has four devices."""

from typing import Any

import pytest

from tests.helpers.several_devices import result_of

SCRIPT = """
import json, sys
import jax
import jax.numpy as jnp
from pid_jax import models, sharding
from pid_jax.backends import int8
from pid_jax.compile_ahead import programs, targets
from pid_jax.data.batching import BatchShape
from tests.helpers.tiny_families import VARIANTS
from tests.helpers.tiny_t5 import TINY

MESH = {"data": 1, "fsdp": 2, "tensor": 2}
mesh = sharding.make_mesh(**MESH)
result = {}
for name, config in {"tied": TINY, "own head": TINY | {"tie_word_embeddings": False},
                     "bart": VARIANTS["bart"]}.items():
    model = models.build(config)
    placed = jax.device_put(
        models.init_params(model, jax.random.key(0)),
        sharding.param_shardings(mesh, models.logical_axes(model)),
    )
    expected = int8.quantize(placed)
    for target in ("v5e:2x2", "h100:4"):
        request = programs.ProgramRequest(
            targets.parse(target), "decode", model.config, BatchShape(1, 8, 1, 2, 4),
            dtype="float32", weights="int8", mesh=MESH,
        )
        ours = programs._decoding_params(model, request, jax.devices())
        assert jax.tree.structure(ours) == jax.tree.structure(expected)
        result[f"{name}, {target}"] = [
            [jax.tree_util.keystr(path), list(leaf.sharding.shard_shape(leaf.shape)),
             list(other.sharding.shard_shape(other.shape)),
             leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)]
            for (path, leaf), other in zip(
                jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True
            )
        ]
json.dump(result, sys.stdout)
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, list[Any]]:
    result: dict[str, list[Any]] = result_of(SCRIPT, devices=4)
    return result


def test_weights_in_8_bits_are_split_as_rounding_splits_them(seen: dict[str, list[Any]]) -> None:
    assert len(seen) == 6
    for name, leaves in seen.items():
        other = [leaf for leaf in leaves if not leaf[-1]]
        assert other == [], name


def test_scales_are_split_along_heads_mlp_and_vocabulary(seen: dict[str, list[Any]]) -> None:
    shapes = {path: shard for path, shard, *_ in seen["own head, v5e:2x2"]}
    # Two parts along the tensor axis. TINY has 16 features, 24 of the feed-forward, 2 heads of 4.
    layer = "['decoder']['layers_0']"
    assert shapes[f"{layer}['feed_forward']['wi']['kernel_scale']"] == [12]
    assert shapes[f"{layer}['self_attention']['query']['kernel_scale']"] == [4]
    # Output features of these are the model's, two parts along the fsdp axis.
    assert shapes[f"{layer}['feed_forward']['wo']['kernel_scale']"] == [8]
    vocabulary = shapes["['shared']['embedding']"][0]
    assert shapes["['shared']['embedding_scale']"] == [vocabulary]
    assert shapes["['lm_head']['kernel_scale']"] == [vocabulary]
