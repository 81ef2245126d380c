"""BART against transformers, on random weights, and what only BART has."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers import bart_checkpoints, parity, transformers_models
from tests.helpers.parity import DOCUMENTS, PROMPTS, TARGETS

VARIANTS = {
    "BART": {"seed": 28},
    "BART (scaled, untied, unequal stacks, forced tokens)": {
        "seed": 0,
        "activation_function": "relu",
        "scale_embedding": True,
        "tie_word_embeddings": False,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 40,
        "decoder_layers": 3,
        "forced_bos_token_id": 95,
        "forced_eos_token_id": 1,
    },
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = bart_checkpoints.make("Bart", directory, **VARIANTS[request.param])
    yield theirs, PidModel.from_pretrained(directory)
    jax.clear_caches()


class TestBart(parity.Parity):
    pass


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Of one small model with forced tokens."""
    directory = tmp_path_factory.mktemp("small")
    options = {"encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 60}
    bart_checkpoints.make(
        "Bart", directory, seed=2, forced_bos_token_id=95, forced_eos_token_id=1, **options
    )
    return directory


@pytest.fixture(scope="module")
def small(directory):
    return PidModel.from_pretrained(directory)


def test_forced_tokens_stand_where_transformers_puts_them(small):
    """The first after an empty prompt only, the last of an output that reaches its limit."""
    rows = small.generate(DOCUMENTS, PROMPTS, max_new_tokens=5)
    for prompts, row in zip(PROMPTS, rows, strict=True):
        for prompt, generation in zip(prompts, row, strict=True):
            assert (generation.tokens[:1] == [95]) == (not prompt)
            assert len(generation.tokens) <= 4
    assert max(len(one.tokens) for row in rows for one in row) == 4
    for method in ("pid", "pie"):
        [[constrained]] = small.generate(
            DOCUMENTS[:1], [[[]]], max_new_tokens=5, method=method, allowed=[[[[7, 8], [9]]]]
        )
        assert constrained.tokens in ([7, 8], [9])


def test_compaction_and_drafts_change_nothing(small):
    parity.assert_compaction_and_drafts_change_nothing(small)


def test_it_learns_and_the_bias_of_its_logits_stays(small):
    params = parity.train_until_learned(small)
    bias = "final_logits_bias"
    np.testing.assert_array_equal(params[bias], small.params[bias])
    table = "positions"
    assert not np.allclose(
        params["decoder"][table]["embedding"], small.params["decoder"][table]["embedding"]
    )


def test_layers_are_dropped_in_training_only():
    config = {**bart_checkpoints.SIZES, "model_type": "bart", "dropout": 0.0}
    config |= {"encoder_layers": 1, "decoder_layers": 1}
    whole = models.build(config)
    params = models.init_params(whole, jax.random.key(0))
    dropping = models.build({**config, "encoder_layerdrop": 1.0, "decoder_layerdrop": 1.0})
    document, mask = jnp.array([[5, 6, 7]]), jnp.ones((1, 3), bool)

    def encoded(model, **options):
        return model.apply({"params": params}, document, mask, method="encode", **options)

    training = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}
    np.testing.assert_array_equal(encoded(dropping), encoded(whole))
    np.testing.assert_allclose(encoded(whole, **training), encoded(whole), atol=1e-5)
    assert not np.allclose(encoded(dropping, **training), encoded(whole), atol=0.1)


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_what_is_longer_than_the_table_is_refused_by_name(small, method):
    longest = [5] * (60 if method == "pid" else 57)
    prompt = [6, 7, 8]
    options = {"method": method, "max_new_tokens": 4}
    small.generate([longest], [[prompt]], **options)
    with pytest.raises(UserError, match=r"documents\[1\].* has 61 tokens, .* has positions for 60"):
        small.generate([[5], [*longest, 5]], [[prompt], [prompt]], **options)
    with pytest.raises(UserError, match=r"documents\[0\].* has 61 tokens"):
        small.score([[*longest, 5]], [[prompt]], [[[1]]], method=method)


def test_more_new_tokens_than_positions_are_no_fault_of_a_prompt(small):
    small.generate([], [], max_new_tokens=60)
    with pytest.raises(UserError, match="max_new_tokens=61, but the model's decoder has positions"):
        small.generate([], [], max_new_tokens=61)


def test_what_the_decoder_has_no_positions_for_is_refused_by_name(small):
    prompt = [6] * 50
    [[generation]] = small.generate([[5, 1]], [[prompt]], max_new_tokens=10)
    assert np.isfinite(generation.score)
    small.score([[5, 1]], [[prompt]], [[[7] * 10]])
    message = r"prompts\[0\]\[1\] has 50 tokens and its answer up to 11, .* positions for 60 in all"
    with pytest.raises(UserError, match=message):
        small.generate([[5, 1]], [[[6], prompt]], max_new_tokens=11)
    with pytest.raises(UserError, match=message):
        small.score([[5, 1]], [[[6], prompt]], [[[7], [7] * 11]])


def test_drafts_beyond_the_table_do_no_harm(small):
    """Of a full decoder the last draft reads tokens for which there are no positions."""
    prompt, document = [6] * 50, [*range(2, 30), 1]
    [[plain]] = small.generate([document], [[prompt]], max_new_tokens=10)
    [[drafted]] = small.generate([document], [[prompt]], max_new_tokens=10, draft_tokens=6)
    assert drafted.tokens == plain.tokens
    assert drafted.score == pytest.approx(plain.score, abs=1e-4)


def change_tensors(source, directory, change):
    tensors = change(load_file(source / "model.safetensors"))
    for name in ("config.json", "generation_config.json"):
        (directory / name).write_text((source / name).read_text())
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_without_a_head_is_one_with_a_head_of_no_bias(directory, small, tmp_path):
    """As facebook/bart-base is published: no "model." before names, versions, repetitions."""

    def strip(tensors):
        del tensors["final_logits_bias"]
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        for stack in ("encoder", "decoder"):
            tensors[f"{stack}.version"] = np.ones(1, np.float32)
            tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"].copy()
        return tensors

    change_tensors(directory, tmp_path, strip)
    loaded = PidModel.from_pretrained(tmp_path)
    assert loaded.config == small.config
    expected = {**small.params, "final_logits_bias": np.zeros((1, 96), np.float32)}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    theirs = transformers.BartForConditionalGeneration.from_pretrained(tmp_path)
    [[score]] = loaded.score(DOCUMENTS[:1], [PROMPTS[0][:1]], [TARGETS[0][:1]])
    assert score == pytest.approx(
        transformers_models.log_probability(theirs, DOCUMENTS[0], PROMPTS[0][0], TARGETS[0][0]),
        abs=1e-4,
    )


def test_embeddings_of_a_stack_of_its_own_are_refused(directory, tmp_path):
    def untie(tensors):
        name = "model.encoder.embed_tokens.weight"
        tensors[name] = tensors["model.shared.weight"] + 1
        return tensors

    change_tensors(directory, tmp_path, untie)
    with pytest.raises(UserError, match=r"not of this model: model\.encoder\.embed_tokens"):
        PidModel.from_pretrained(tmp_path)

    def untie_head(tensors):
        tensors = untie(tensors)
        tensors["lm_head.weight"] = tensors["model.shared.weight"] - 1
        return tensors

    change_tensors(directory, tmp_path, untie_head)
    with pytest.raises(
        UserError, match=r"shared\.weight differs from model\.encoder\.embed_tokens"
    ):
        PidModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("said", ["config.json", "generation_config.json", "legacy"])
def test_forced_tokens_are_read_where_transformers_reads_them(directory, tmp_path, said):
    """`generation_config.json` alone where it is there, else `config.json`."""
    config = json.loads((directory / "config.json").read_text())
    forced = {"forced_bos_token_id": 95, "forced_eos_token_id": 1}
    config.update(forced_eos_token_id=None)
    if said == "legacy":
        config |= {"forced_eos_token_id": 1, "force_bos_token_to_be_generated": True}
    elif said == "config.json":
        config |= forced
    else:
        generation = {"decoder_start_token_id": 3, **forced}
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    read = PidModel.from_pretrained(tmp_path).config
    theirs = transformers.BartForConditionalGeneration.from_pretrained(tmp_path).generation_config
    for key in (*forced, "decoder_start_token_id"):
        assert getattr(read, key) == getattr(theirs, key)
    assert (read.forced_bos_token_id, read.forced_eos_token_id) == (95, 1)
    if said != "generation_config.json":
        (tmp_path / "generation_config.json").write_text("{}")
        assert PidModel.from_pretrained(tmp_path).config.forced_bos_token_id is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "mish"}, "\"activation_function\": 'mish' is not supported"),
        ({"dropout": "0.1"}, '"dropout" must be of type float'),
        ({"max_position_embeddings": "all"}, '"max_position_embeddings" must be of type int'),
        ({"forced_eos_token_id": [1, 2]}, '"forced_eos_token_id" must be of type int'),
        ({"decoder_attention_heads": 5}, '"d_model" must be a multiple of "decoder_attention_h'),
        ({"encoder_ffn_dim": 0}, '"encoder_ffn_dim" must be above 0'),
        ({"is_encoder_decoder": False}, '"is_encoder_decoder": False is not supported'),
    ],
)
def test_a_config_that_is_not_supported_is_named(change, message):
    with pytest.raises(UserError) as error:
        models.build({**bart_checkpoints.SIZES, "model_type": "bart", **change})
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["Bart", "MBart", "Pegasus"])
def test_absent_keys_mean_what_they_mean_to_transformers(name):
    read = models.config_from_hf({"model_type": name.lower()})
    theirs = getattr(transformers, f"{name}Config")()
    compared = 0
    for key, value in read.to_hf().items():
        expected = getattr(theirs, key, None)
        if expected is not None and not key.startswith(("forced", "arch")):
            assert value == expected, key
            compared += 1
    assert compared > 20
    assert models.config_from_hf(read.to_hf()) == read
