"""Hugging Face directories: what loads, what is written, and what is refused by name."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from pid_jax import models
from pid_jax.checkpoints import huggingface
from pid_jax.data.tokenizing import train_tokenizer
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers.tiny_t5 import TINY

LAST = "decoder.final_layer_norm.weight"


@pytest.fixture
def directory(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def assert_same_params(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def change_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_a_saved_model_loads_bit_for_bit(tiny_model, directory):
    loaded = PidModel.from_pretrained(directory)
    assert loaded.config == tiny_model.config
    assert loaded.tokenizer is None
    assert_same_params(loaded.params, tiny_model.params)


def test_saving_writes_the_files_that_transformers_expects(directory):
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == 0
    assert generation["eos_token_id"] == 1
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory)
    assert type(model).__name__ == "T5ForConditionalGeneration"


def test_a_sharded_checkpoint_is_written_and_read(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 4000)
    tiny_model.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert {path.name for path in tmp_path.glob("*.safetensors")} == files
    assert_same_params(PidModel.from_pretrained(tmp_path).params, tiny_model.params)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        theirs.shared.weight.detach().numpy(), tiny_model.params["shared"]["embedding"]
    )


def test_saving_over_a_sharded_checkpoint_leaves_no_stale_shard(tiny_model, tmp_path, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(huggingface, "SHARD_BYTES", 4000)
        tiny_model.save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_transformers_own_shards_load(directory, tmp_path, tiny_model):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert_same_params(PidModel.from_pretrained(tmp_path / "theirs").params, tiny_model.params)


def test_bfloat16_weights_are_read_and_written_as_such(directory, tmp_path):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    loaded = PidModel.from_pretrained(tmp_path / "half", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    loaded.save_pretrained(tmp_path / "again")
    theirs = load_file(tmp_path / "half" / "model.safetensors")
    ours = load_file(tmp_path / "again" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name in theirs:
        np.testing.assert_array_equal(theirs[name], ours[name])
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"


def test_repeated_embeddings_under_their_second_names_are_understood(directory, tiny_model):
    def repeat(tensors):
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            tensors[name] = tensors["shared.weight"].copy()
        tensors["lm_head.weight"] = tensors["shared.weight"].copy()

    change_tensors(directory, repeat)
    loaded = PidModel.from_pretrained(directory)
    assert loaded.config.tie_word_embeddings
    assert_same_params(loaded.params, tiny_model.params)


def test_the_unused_bias_of_the_first_t5_checkpoints_is_left_aside(directory, tiny_model):
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    change_tensors(directory, lambda tensors: tensors.update({name: np.ones((32, 2), "f")}))
    assert_same_params(PidModel.from_pretrained(directory).params, tiny_model.params)


def test_missing_extra_and_misshaped_tensors_are_all_named(directory):
    def spoil(tensors):
        del tensors[LAST]
        tensors["encoder.block.7.extra.weight"] = np.ones(3, np.float32)
        name = "encoder.block.0.layer.0.SelfAttention.q.weight"
        tensors[name] = np.ones((5, 16), np.float32)

    change_tensors(directory, spoil)
    with pytest.raises(UserError) as error:
        PidModel.from_pretrained(directory)
    message = str(error.value)
    assert f"missing: {LAST}" in message
    assert "not of this model: encoder.block.7.extra.weight" in message
    assert (
        "encoder.block.0.layer.0.SelfAttention.q.weight has shape (5, 16), "
        "but config.json requires (8, 16)"
    ) in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "flax_model.msgpack"])
def test_pickled_weights_are_refused_with_how_to_convert_them(directory, name):
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(UserError, match=rf"{name}: .*convert it once.*save_pretrained"):
        PidModel.from_pretrained(directory)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json: no such file"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json: not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), r"config\.json: must hold a JSON object"),
        (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (
            lambda d: (d / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{"),
            r"model\.safetensors: not a complete safetensors file",
        ),
    ],
)
def test_spoiled_directories_are_refused_by_file(directory, spoil, message):
    spoil(directory)
    with pytest.raises(UserError, match=message):
        PidModel.from_pretrained(directory)


def test_a_shard_that_is_missing_or_lies_elsewhere_is_named(directory):
    (directory / "model.safetensors").rename(directory.parent / "outside.safetensors")
    index = directory / "model.safetensors.index.json"
    for shard in ("gone.safetensors", "../outside.safetensors"):
        index.write_text(json.dumps({"weight_map": {LAST: shard}}))
        with pytest.raises(UserError, match=f"{shard}.*is not in the directory"):
            PidModel.from_pretrained(directory)


def test_what_is_no_directory_and_no_hub_id_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        PidModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such directory"):
        PidModel.from_pretrained("./nowhere")


def test_a_hub_id_is_fetched_without_pickles(directory, monkeypatch):
    requested = {}

    def download(name, allow_patterns):
        requested.update(name=name, patterns=allow_patterns)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    PidModel.from_pretrained("google-t5/t5-small")
    assert requested["name"] == "google-t5/t5-small"
    assert not any(pattern.endswith((".bin", "*")) for pattern in requested["patterns"])


def test_a_hub_checkpoint_that_is_pickled_only_is_refused_with_how_to_convert_it(
    directory, monkeypatch
):
    (directory / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(directory))
    listing = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_: listing)
    with pytest.raises(UserError, match=r'pytorch_model.bin: .*from_pretrained\("google/t5"\)'):
        PidModel.from_pretrained("google/t5")


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory):
    tokenizer = train_tokenizer(["the hotel is in the north", "a cheap place"] * 5, 300)
    model = models.build(TINY | {"vocab_size": len(tokenizer)})
    directory = tmp_path_factory.mktemp("with_tokenizer")
    original = PidModel(model, models.init_params(model, jax.random.key(0)), tokenizer)
    original.save_pretrained(directory)
    return original, directory


def test_the_tokenizer_travels_along(with_tokenizer):
    original, directory = with_tokenizer
    loaded = PidModel.from_pretrained(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = "a cheap hotel in the north"
    assert loaded.tokenizer(text).input_ids == original.tokenizer(text).input_ids
    assert theirs(text).input_ids == original.tokenizer(text).input_ids


def test_text_gets_the_end_token_on_documents_and_targets_only(with_tokenizer):
    model, _ = with_tokenizer
    ids = {
        text: model.tokenizer(text, add_special_tokens=False).input_ids
        for text in ("the hotel", "north", "cheap")
    }
    as_text = model.score(["the hotel"], [["north"]], [["cheap"]])
    as_ids = model.score([[*ids["the hotel"], 1]], [[ids["north"]]], [[[*ids["cheap"], 1]]])
    assert as_text[0] == pytest.approx(as_ids[0], abs=1e-5)
    [[generation]] = model.generate(["the hotel"], [["north"]], max_new_tokens=3)
    decoded = model.tokenizer.decode(generation.tokens, skip_special_tokens=True)
    assert generation.text == decoded.strip()


def test_a_sentencepiece_model_alone_is_a_tokenizer(directory, tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the hotel is in the north\na cheap place to stay\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    shutil.copy(tmp_path / "spiece.model", directory / "spiece.model")
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    loaded = PidModel.from_pretrained(directory)
    assert loaded.tokenizer("the north").input_ids == [*processor.encode("the north"), 1]


def test_vocab_and_merges_alone_are_a_tokenizer(directory):
    """As BART's oldest repositories have it."""
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "ab"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\na b\n")
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "bart"}
    (directory / "config.json").write_text(json.dumps(config))
    assert huggingface.load_tokenizer(directory)("ab").input_ids == [0, 7, 2]
    assert {"vocab.json", "merges.txt"} <= set(huggingface._TOKENIZER_FILES)


def test_byt5_needs_no_vocabulary_file(directory):
    transformers.ByT5Tokenizer().save_pretrained(directory)
    for file in ("added_tokens.json", "special_tokens_map.json"):
        (directory / file).unlink(missing_ok=True)
    loaded = PidModel.from_pretrained(directory)
    assert loaded.tokenizer("ab").input_ids == [ord("a") + 3, ord("b") + 3, 1]


def test_nothing_of_an_earlier_tokenizer_stays(text_model, tiny_model, tmp_path):
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    for file in ("added_tokens.json", "chat_template.jinja", "additional_chat_templates/a.jinja"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<old>"]}')
    (tmp_path / "notes.txt").write_text("mine")
    text_model.save_pretrained(tmp_path / "fresh")
    text_model.save_pretrained(tmp_path)
    fresh = {path.name for path in (tmp_path / "fresh").iterdir()}
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == fresh | {"notes.txt"}
    again = huggingface.load_tokenizer(tmp_path)
    assert again.get_vocab() == text_model.tokenizer.get_vocab()
    tiny_model.save_pretrained(tmp_path)
    assert huggingface.load_tokenizer(tmp_path) is None


def test_a_tokenizer_without_a_model_stays_beside_one_that_has_none(tiny_model, tmp_path):
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    assert huggingface.load_tokenizer(tmp_path)("a").input_ids == [ord("a") + 3, 1]
