"""LED against transformers, on random weights, with global tokens and without."""

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.models.led.modeling_led import LEDEncoder

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers import bart_checkpoints, parity, transformers_models
from tests.helpers.parity import PROMPTS, TARGETS

AS_IT_IS = LEDEncoder.forward
SIZES = {
    "max_encoder_position_embeddings": 768,
    "max_decoder_position_embeddings": 64,
    "attention_window": [4, 8],  # transformers wants the widest to be a multiple of each
}
VARIANTS = {
    # With other seeds hardly any output ends early.
    "the first token global": {"seed": 1, "global_attention_tokens": 1},
    "no token global (one window, a deep decoder)": {
        "seed": 1,
        "global_attention_tokens": 0,
        "attention_window": 6,
        "decoder_layers": 3,
    },
}


@pytest.fixture(scope="module", autouse=True)
def _their_global_tokens():
    """transformers is told with each call which tokens are global: here the model's own choice."""
    forward = LEDEncoder.forward

    def with_global_tokens(self, input_ids, **kwargs):
        global_tokens = torch.arange(input_ids.shape[1]) < self.config.global_attention_tokens
        mask = global_tokens.long().expand_as(input_ids)
        return forward(self, input_ids, **{**kwargs, "global_attention_mask": mask})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LEDEncoder, "forward", with_global_tokens)
        yield


@pytest.mark.parametrize("told", [True, False])
def test_transformers_has_to_be_told_of_the_global_token(tmp_path, told):
    theirs = make(tmp_path, seed=1)
    ours = PidModel.from_pretrained(tmp_path)
    document, prompt, target = [2 + (7 * i) % 90 for i in range(60)], [3, 4], [5, 6]
    [[score]] = ours.score([document], [[prompt]], [[target]])
    first = torch.tensor([[int(told), *[0] * 59]])
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(LEDEncoder, "forward", AS_IT_IS)
        rows = theirs(
            input_ids=torch.tensor([document]),
            global_attention_mask=first,
            decoder_input_ids=torch.tensor([[transformers_models.start_of(theirs), *prompt, 5]]),
        ).logits[0, len(prompt) :]
    expected = sum(
        float(row.log_softmax(-1)[token]) for row, token in zip(rows, target, strict=True)
    )
    assert (abs(score - expected) < 1e-4) == told


def make(directory, **options):
    return bart_checkpoints.make("LED", directory, **{**SIZES, **options})


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = make(directory, **VARIANTS[request.param])
    yield theirs, PidModel.from_pretrained(directory)
    jax.clear_caches()


class TestLED(parity.Parity):
    pass


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("small")
    make(
        directory,
        seed=2,
        encoder_layers=1,
        decoder_layers=1,
        attention_window=128,
        attention_dropout=0.1,
        global_attention_tokens=3,
    )
    return directory


def test_documents_of_any_length_score_as_in_transformers(small):
    """Three global tokens, more than the shortest has."""
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(small)
    ours = PidModel.from_pretrained(small)
    prompt, target = PROMPTS[0][0], TARGETS[0][0]
    for length in (2, 30, 700):
        document = [2 + (7 * i) % 90 for i in range(length)]
        [[score]] = ours.score([document], [[prompt]], [[target]])
        expected = transformers_models.log_probability(theirs, document, prompt, target)
        assert score == pytest.approx(expected, abs=1e-4)


def test_compaction_and_drafts_change_nothing(small):
    parity.assert_compaction_and_drafts_change_nothing(PidModel.from_pretrained(small))


def test_it_learns(small):
    parity.train_until_learned(PidModel.from_pretrained(small))


def test_how_far_a_document_is_padded_does_not_matter():
    sizes = {key: value for key, value in bart_checkpoints.SIZES.items() if value is not None}
    model = models.build({**sizes, **SIZES, "model_type": "led"})
    params = models.init_params(model, jax.random.key(0))
    document = np.arange(2, 92)

    @jax.jit
    def encode(tokens, mask):
        return model.apply({"params": params}, tokens, mask, method="encode")

    for length in (1, 90):
        exact = encode(document[None, :length], np.ones((1, length), bool))
        for padding in (1, 6, 250):
            tokens = np.pad(document[:length], (0, padding), constant_values=7)[None]
            mask = np.arange(length + padding)[None] < length
            np.testing.assert_allclose(encode(tokens, mask)[:, :length], exact, atol=2e-5)


def test_the_first_token_is_global_unless_the_config_says_otherwise():
    config = models.config_from_hf({"model_type": "led", "encoder_layers": 2})
    assert config.global_attention_tokens == 1
    assert config.attention_window == (512, 512)
    for tokens in (0, 5):
        written = {**config.to_hf(), "global_attention_tokens": tokens}
        read = models.config_from_hf(written)
        assert read.global_attention_tokens == tokens
        assert models.config_from_hf(read.to_hf()) == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attention_window": 5},
            '"attention_window" must be an even number above 0, or a list of',
        ),
        ({"attention_window": [4]}, 'for each of "encoder_layers": 2, but is [4]'),
        ({"attention_window": [4, 0]}, "but is [4, 0]"),
        ({"attention_window": "4"}, "but is '4'"),
        ({"global_attention_tokens": -1}, '"global_attention_tokens" must be at least 0'),
        ({"max_encoder_position_embeddings": "4k"}, '"max_encoder_position_embeddings" must be of'),
    ],
)
def test_a_config_that_is_not_supported_is_named(change, message):
    with pytest.raises(UserError) as error:
        models.build({"model_type": "led", "encoder_layers": 2, **SIZES, **change})
    assert message in str(error.value)
