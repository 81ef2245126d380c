"""mBART against transformers, on random weights, and where its decoder starts."""

import jax
import pytest

from pid_jax import models
from pid_jax.inference.model import PidModel
from tests.helpers import bart_checkpoints, parity

VARIANTS = {
    "mBART (starts with a language's code)": {
        "seed": 9,
        "scale_embedding": True,
        "decoder_start_token_id": 94,
    },
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = bart_checkpoints.make("MBart", directory, **VARIANTS[request.param])
    yield theirs, PidModel.from_pretrained(directory)
    jax.clear_caches()


class TestMBart(parity.Parity):
    pass


def test_compaction_drafts_and_training(pair):
    _, ours = pair
    parity.assert_compaction_and_drafts_change_nothing(ours)
    parity.train_until_learned(ours)


def test_without_a_language_a_decoder_starts_with_the_bos_token_as_in_transformers():
    config = {"model_type": "mbart", "bos_token_id": 7}
    assert models.config_from_hf(config).decoder_start_token_id == 7
    config["decoder_start_token_id"] = 94
    assert models.config_from_hf(config).decoder_start_token_id == 94
