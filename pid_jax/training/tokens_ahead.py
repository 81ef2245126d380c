"""Tokenizes the data of a run before the run, without the weights of its model."""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from pid_jax.checkpoints import contents, huggingface, peft
from pid_jax.checkpoints.orbax import MODEL
from pid_jax.data.token_files import StoredTokens, verify
from pid_jax.data.tokenizing import Tokenizer
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder
from pid_jax.training import assembly, splits


def tokenize_ahead(config: ConfigDict) -> Iterator[StoredTokens]:
    """The training and validation tokens of a run on disk, one split after another.

    Writes what `config.data.cache` lacks, and checks what it has from end to end. Raises UserError
    without such a directory, for errors in the data and for damaged tokens.
    """
    if not config.data.cache:
        raise UserError(
            "config.data.cache is not set: name the directory of the tokens, here and in training"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.tokens = "disk"
    data = splits.of_run(config, Path(config.data.cache))
    model, tokenizer = (
        _described(config) or assembly.new_model(config, splits.tokenizer_texts(data))[::2]
    )
    for one in data:
        for split in (one.train, one.validation):
            source = split.tokens(model, tokenizer).source
            assert isinstance(source, StoredTokens)
            verify(source.directory)
            splits.report(split, source.statistics)
            yield source


def _described(config: ConfigDict) -> tuple[EncoderDecoder, Tokenizer] | None:
    """The model and the tokenizer of config.model.init, without weights. None without it."""
    if not config.model.init:
        return None
    run = contents.run_of(config.model.init)
    directory = huggingface.find(config.model.init) if run is None else run.workdir / MODEL
    places = [directory]
    if run is None and peft.is_adapter(directory):
        directory = huggingface.find(peft.base_of(directory))
        places.append(directory)
    if config.tokenizer.path:
        places = [huggingface.find(config.tokenizer.path)]
    found = (huggingface.load_tokenizer(place) for place in places)
    tokenizer = next((one for one in found if one is not None), None)
    if tokenizer is None:
        raise UserError(f"{places[0]} has no tokenizer: name one with --config.tokenizer.path=...")
    architecture = huggingface.read_config(directory)
    partial = assembly.partial_init(config, tokenizer)
    if partial is not None:
        architecture = partial.config(architecture)
    return assembly.build_model(config, architecture), tokenizer
