"""PEGASUS against transformers, on random weights, and its positions."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pid_jax.inference.model import PidModel
from pid_jax.models import positions
from tests.helpers import bart_checkpoints, parity

VARIANTS = {
    "PEGASUS (starts with padding)": {
        "seed": 4,
        "activation_function": "relu",
        "scale_embedding": True,
        "decoder_start_token_id": 0,
    },
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = bart_checkpoints.make("Pegasus", directory, **VARIANTS[request.param])
    yield theirs, PidModel.from_pretrained(directory)
    jax.clear_caches()


class TestPegasus(parity.Parity):
    pass


def test_compaction_drafts_and_training_which_leaves_positions_alone(pair):
    _, ours = pair
    parity.assert_compaction_and_drafts_change_nothing(ours)
    params = parity.train_until_learned(ours)
    for stack in ("encoder", "decoder"):
        table = params[stack]["positions"]["sinusoids"]
        np.testing.assert_array_equal(table, ours.params[stack]["positions"]["sinusoids"])


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_sinusoids_are_those_of_transformers_and_need_not_be_in_a_checkpoint(pair, stack, tmp_path):
    theirs, ours = pair
    name = f"model.{stack}.embed_positions.weight"
    table = theirs.state_dict()[name].numpy()
    np.testing.assert_array_equal(positions.sinusoids(table.shape), table)
    ours.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = PidModel.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, ours.params)
