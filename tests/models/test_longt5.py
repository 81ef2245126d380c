"""LongT5 against transformers, on random weights, and what only LongT5 has."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers import parity, transformers_models
from tests.helpers.parity import DOCUMENTS, PROMPTS, TARGETS
from tests.helpers.transformers_models import resemble_all

SIZES = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "local_radius": 5,
    "global_block_size": 4,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "local (relu, scaled)": {"encoder_attention_type": "local", "seed": 0},
    "transient-global (gated-gelu, unscaled, unequal stacks)": {
        "encoder_attention_type": "transient-global",
        "feed_forward_proj": "gated-gelu",
        "num_decoder_layers": 1,
        "tie_word_embeddings": False,
        "seed": 3,  # with 0 no output ends early
    },
}


def make(directory: Path, *, seed: int = 0, **options: Any) -> Any:
    """A random model, saved to `directory`."""
    torch.manual_seed(seed)
    config = transformers.LongT5Config(**{**SIZES, **options})
    model = transformers.LongT5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start alike: make them differ
            parameter.add_(0.1 * torch.randn_like(parameter))
        resemble_all(model.shared.weight)
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = make(directory, **VARIANTS[request.param])
    yield theirs, PidModel.from_pretrained(directory)
    jax.clear_caches()


class TestLongT5(parity.Parity):
    pass


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("small")
    make(directory, num_layers=1, encoder_attention_type="transient-global")
    return PidModel.from_pretrained(directory)


def test_compaction_and_drafts_change_nothing(small):
    parity.assert_compaction_and_drafts_change_nothing(small)


def test_it_learns(small):
    parity.train_until_learned(small)


def test_documents_of_any_length_score_as_in_transformers(tmp_path):
    """Of the published sizes: radius 127, blocks of 16, of which short documents have none."""
    theirs = make(
        tmp_path,
        num_layers=1,
        encoder_attention_type="transient-global",
        local_radius=127,
        global_block_size=16,
    )
    ours = PidModel.from_pretrained(tmp_path)
    prompt, target = PROMPTS[0][0], TARGETS[0][0]
    for length in (3, 15, 16, 31, 700):
        document = [2 + (7 * i) % 90 for i in range(length)]
        [[score]] = ours.score([document], [[prompt]], [[target]])
        expected = transformers_models.log_probability(theirs, document, prompt, target)
        assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["local", "transient-global"])
def test_how_far_a_document_is_padded_does_not_matter(kind):
    model = models.build({**SIZES, "model_type": "longt5", "encoder_attention_type": kind})
    params = models.init_params(model, jax.random.key(0))
    document = np.arange(2, 92)

    @jax.jit
    def encode(tokens, mask):
        return model.apply({"params": params}, tokens, mask, method="encode")

    for length in (22, 90):
        exact = encode(document[None, :length], np.ones((1, length), bool))
        for padding in (1, 2, 63, 250):
            tokens = np.pad(document[:length], (0, padding), constant_values=7)[None]
            mask = np.arange(length + padding)[None] < length
            np.testing.assert_allclose(encode(tokens, mask)[:, :length], exact, atol=2e-5)


def test_an_untied_head_is_read(tmp_path):
    """As published: `lm_head.weight` beside "tie_word_embeddings": false."""
    model = models.build({**SIZES, "model_type": "longt5", "tie_word_embeddings": False})
    ours = PidModel(model, models.init_params(model, jax.random.key(1)))
    ours.save_pretrained(tmp_path)
    again = PidModel.from_pretrained(tmp_path)
    assert not again.config.tie_word_embeddings
    assert not again.config.scale_decoder_outputs
    scores = [one.score(DOCUMENTS, PROMPTS, TARGETS) for one in (ours, again)]
    np.testing.assert_array_equal(*map(np.concatenate, scores))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_attention_type": "global"},
            "\"encoder_attention_type\": 'global' is not supported; supported: 'local', 'trans",
        ),
        ({"local_radius": 0}, '"local_radius" must be above 0'),
        ({"global_block_size": "16"}, '"global_block_size" must be of type int'),
    ],
)
def test_a_config_that_is_not_supported_is_named(change, message):
    with pytest.raises(UserError) as error:
        models.build({**SIZES, "model_type": "longt5", **change})
    assert message in str(error.value)
