"""The parts of a run, created from its configuration: task, data, model, tokenizer, batches."""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax import models, tasks
from pid_jax.backends.settings import current_platform
from pid_jax.checkpoints import (
    contents,
    generation_config,
    huggingface,
    orbax,
    peft,
    trained_model,
)
from pid_jax.checkpoints.partial import PartialInit
from pid_jax.data import pipeline, prepared
from pid_jax.data.batching import BatchShape
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.examples import Example
from pid_jax.data.packing import PackedShape
from pid_jax.data.token_source import Statistics, TokenSource
from pid_jax.data.tokenizing import (
    Limits,
    TokenizedExample,
    TokenizedExamples,
    Tokenizer,
    encode_target,
    train_tokenizer,
)
from pid_jax.errors import UserError
from pid_jax.inference.loading import load
from pid_jax.inference.request import too_long
from pid_jax.models.protocol import Config, EncoderDecoder, Params, control_token_ids
from pid_jax.prompt_in_decoder import prompt_in_encoder

log = logging.getLogger(__name__)

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def task_of(config: ConfigDict) -> tasks.Task:
    """The task that `config.data` names, with its options."""
    return tasks.get(config.data.task, **config.data.options.to_dict())


def examples_of(config: ConfigDict, split: str) -> Iterable[Example]:
    """The examples of a split, from the source or the prepared data set at config.data.path.

    A prepared data set is a sequence that reads examples on access. Raises UserError for missing
    or malformed data.
    """
    task = task_of(config)
    options = tasks.reading_options(task, config.data.options.to_dict())
    data = prepared.find(config.data.path, config.data.task, options)
    if data is None:
        return task.examples(config.data.path or None, split)
    log.info("%s: read from %s", split, data.directory)
    return prepared.PreparedExamples(data, split)


def read_examples(config: ConfigDict, split: str) -> Sequence[Example]:
    """All examples of a split. Raises UserError for an empty one."""
    source = examples_of(config, split)
    examples = source if isinstance(source, Sequence) else list(source)
    if not examples:
        raise no_examples(config, split)
    return examples


def no_examples(config: ConfigDict, split: str) -> UserError:
    """The error for an empty split."""
    return UserError(f"task {config.data.task}: the split {split!r} has no examples")


def limits(config: ConfigDict) -> Limits:
    """The maximum numbers of tokens of a document, a prompt and a target."""
    return Limits(
        document_tokens=config.data.document_tokens,
        prompt_tokens=config.data.prompt_tokens,
        target_tokens=config.data.target_tokens,
        truncation_side=config.data.truncation_side,
    )


def activation_dtype(config: ConfigDict) -> Any:
    """The dtype of activations: "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if config.model.dtype == "auto":
        return jnp.float32 if current_platform() == "cpu" else jnp.bfloat16
    return _DTYPES[config.model.dtype]


def new_model(
    config: ConfigDict, examples: Iterable[Example], mesh: Mesh | None = None
) -> tuple[EncoderDecoder, Params | None, Tokenizer]:
    """The model of a new run, its parameters (None: to be initialised), and its tokenizer.

    examples: the training examples, to train a tokenizer on. mesh: the parameters of a checkpoint
    are sharded over its devices. None for the first device. Raises UserError for a checkpoint
    without a tokenizer.
    """
    if config.model.init:
        tokenizer = _read_tokenizer(config) if config.tokenizer.path else None
        initial, params, own_tokenizer, _ = load(
            config.model.init, "float32", None, mesh, partial_init(config, tokenizer)
        )
        architecture = initial.config
        tokenizer = own_tokenizer if tokenizer is None else tokenizer
        if tokenizer is None:
            raise UserError(
                f"{config.model.init} has no tokenizer: name one with --config.tokenizer.path=..."
            )
    else:
        params = None
        if config.tokenizer.path:
            tokenizer = _read_tokenizer(config)
        else:
            tokenizer = train_tokenizer(_texts(examples), config.tokenizer.vocab_size)
        description = {
            **config.model.architecture.to_dict(),
            "vocab_size": vocabulary(tokenizer),
            "pad_token_id": _special(tokenizer, "pad_token_id"),
            "eos_token_id": _special(tokenizer, "eos_token_id"),
            "decoder_start_token_id": _special(tokenizer, "pad_token_id"),
        }
        architecture = models.config_from_hf(description)
    return build_model(config, architecture), params, tokenizer


def partial_init(config: ConfigDict, tokenizer: Tokenizer | None) -> PartialInit | None:
    """What of the model may differ from the checkpoint. None if nothing may.

    tokenizer: None for that of the checkpoint.
    """
    if not config.model.partial_init:
        return None
    if tokenizer is None and contents.run_of(config.model.init) is None:
        tokenizer = huggingface.load_tokenizer(huggingface.find(config.model.init))
    return PartialInit(
        config.seed,
        config.model.init_architecture.to_dict(),
        0 if tokenizer is None else vocabulary(tokenizer),
    )


def saved_model(config: ConfigDict, directory: Path) -> tuple[EncoderDecoder, Tokenizer]:
    """The model and tokenizer that `save_model` wrote, with this run's dropout and dtype.

    Raises UserError if the tokenizer is missing.
    """
    tokenizer = huggingface.load_tokenizer(directory)
    if tokenizer is None:
        raise UserError(f"{directory} has no tokenizer: the run cannot continue")
    return build_model(config, huggingface.read_config(directory)), tokenizer


def build_model(config: ConfigDict, architecture: Any) -> EncoderDecoder:
    """The model of a run, with its dropout and the dtype of its activations."""
    architecture = dataclasses.replace(
        architecture,
        dropout_rate=config.train.dropout_rate,
        forced_bos_token_id=None,  # targets have no such token, so neither will outputs
    )
    return models.build(
        architecture,
        activation_dtype(config),
        remat=config.train.remat,
        scan_layers=config.model.scan_layers,
        lora=trained_model.adapter_of(config.to_dict()),
    )


def save_model(
    directory: Path,
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes the configuration, the tokenizer and the generation configuration of a model."""
    huggingface.save_config(directory, model.config, tokenizer, generation=generation)


def generation_of(config: ConfigDict) -> dict[str, Any]:
    """The generation configuration of the initial checkpoint, without limits on lengths.

    Such limits suit the outputs that the checkpoint was trained for, for example summaries, not
    those of this run.
    """
    if not config.model.init:
        return {}
    run = contents.run_of(config.model.init)
    if run is not None:
        directory = run.workdir / orbax.MODEL
    else:
        directory = huggingface.find(config.model.init)
        if peft.is_adapter(directory):
            directory = huggingface.find(peft.base_of(directory))
    content = huggingface.read_generation(directory)
    lengths = {key: value for key, value in content.items() if key in generation_config.LENGTHS}
    if lengths:
        log.info(
            "%s: the run ignores %s of its generation_config.json, because lengths depend on the "
            "task",
            config.model.init,
            ", ".join(f"{key}={value}" for key, value in lengths.items()),
        )
    return {key: value for key, value in content.items() if key not in lengths}


def tokenize(
    config: ConfigDict, examples: Iterable[Example], model: EncoderDecoder, tokenizer: Tokenizer
) -> TokenizedExamples:
    """The examples as token ids, truncated to the run's limits.

    Raises UserError for limits above the model's positions, and for tokens that the model cannot
    read.
    """
    lengths = limits(config)
    check_positions(config.method, lengths, model.config)
    tokenized = TokenizedExamples(
        examples,
        tokenizer,
        lengths,
        end_token_id=model.config.eos_token_id,
        text_of=Detokenizer(tokenizer, control_token_ids(model.config)).text,
    )
    check_readable(tokenized.statistics, model, tokenizer)
    return tokenized


def check_readable(statistics: Statistics, model: EncoderDecoder, tokenizer: Tokenizer) -> None:
    """Raises UserError for tokens that the model cannot read."""
    # A tokenizer may have more tokens than the model: bart-large-cnn's <mask> has no embedding.
    unreadable = models.why_unreadable(model.config, statistics.tokens)
    if unreadable is not None:
        token, why = unreadable
        raise UserError(
            f"the tokenizer produced the token id {token} ({tokenizer.decode([token])!r}), {why}: "
            "is this the tokenizer of the model?"
        )


def check_positions(method: str, limits: Limits, architecture: Config) -> None:
    """Raises UserError, naming the keys, if an example of maximum size does not fit the model."""
    prompts = [[0] * limits.prompt_tokens]
    longest = TokenizedExample(
        "", [0] * limits.document_tokens, prompts, [[0] * limits.target_tokens]
    )
    exceeded = next(too_long(architecture, longest, [limits.target_tokens], method), None)
    if exceeded is None:
        return
    of_document = exceeded[1] == "document"
    names = ["document_tokens"] if of_document else ["target_tokens"]
    if (method == "pie") == of_document:
        names = ["document_tokens", "prompt_tokens"] if of_document else ["prompt_tokens", *names]
    keys = " and ".join(f"config.data.{name}={getattr(limits, name)}" for name in names)
    stack = "encoder" if of_document else "decoder"
    most = architecture.max_document_tokens if of_document else architecture.max_decoder_tokens
    raise UserError(
        f'{keys}: the model\'s {stack} has positions for {most} tokens under "{method}". '
        "Reduce the limits"
    )


def training_stream(
    config: ConfigDict,
    source: TokenSource,
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    own_rows: pipeline.OwnRows = np.arange,
) -> pipeline.Stream:
    """The endless stream of the batches of one task.

    own_rows: the rows that this process has of a batch.
    """
    negative = task_of(config).negative_target
    return pipeline.training_stream(
        source,
        batch_size=config.data.batch_size,
        seed=config.seed,
        max_prompts=config.data.max_prompts,
        negative_target=(
            None
            if negative is None
            else encode_target(tokenizer, negative, model.config.eos_token_id)
        ),
        negative_rate=config.data.negative_rate,
        own_rows=own_rows,
        packing=packs(config),
        **_batch_options(config, model, source),
    )


def packs(config: ConfigDict) -> bool:
    """Whether several prompts of a document share a decoder row.

    Not under "pie": there each document has one prompt.
    """
    return bool(config.data.packing) and config.method == "pid"


def evaluation_batches(
    config: ConfigDict,
    source: TokenSource,
    model: EncoderDecoder,
    own_rows: pipeline.OwnRows = np.arange,
) -> pipeline.Passes:
    """Every example once, in order, with all of its subtasks. Every iteration is another pass.

    own_rows: the rows that this process has of a batch.
    """
    return pipeline.evaluation_batches(
        source,
        batch_size=_evaluation_batch_size(config),
        own_rows=own_rows,
        packing=packs(config),
        **_batch_options(config, model, source),
    )


def largest_batch(
    config: ConfigDict, source: TokenSource, model: EncoderDecoder, *, evaluation: bool
) -> BatchShape | PackedShape:
    """The largest shape of `training_stream` or of `evaluation_batches`."""
    of_batch = _batch_options(config, model, source)
    sizes: dict[str, Any] = {
        "batch_size": _evaluation_batch_size(config) if evaluation else config.data.batch_size,
        "max_prompts": None if evaluation else config.data.max_prompts,
        **{name: of_batch[name] for name in ("arrange", "document_multiple") if name in of_batch},
    }
    if packs(config):
        return pipeline.largest_packed_shape(source, **sizes)
    return pipeline.batch_shapes(source, **sizes)[-1]


def _evaluation_batch_size(config: ConfigDict) -> int:
    return int(config.evaluation.batch_size or config.data.batch_size)


def evenly_spaced(examples: Sequence[Example], number: int) -> Sequence[Example]:
    """`number` evenly spaced examples of the sequence, or all of them for 0."""
    if number == 0 or number >= len(examples):
        return examples
    return [examples[i * len(examples) // number] for i in range(number)]


def _batch_options(
    config: ConfigDict, model: EncoderDecoder, source: TokenSource
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "pad_token_id": model.config.pad_token_id,
        "decoder_start_token_id": model.config.decoder_start_token_id,
        "document_multiple": config.data.document_multiple,
    }
    if config.method == "pie":
        options["arrange"] = functools.partial(prompt_in_encoder, leading=source.leading)
    return options


def _texts(examples: Iterable[Example]) -> Iterator[str]:
    """Every document, and every occurrence of a prompt or target."""
    for example in examples:
        yield example.document
        for subtask in example.subtasks:
            yield subtask.prompt
            if subtask.target is not None:
                yield subtask.target


def _read_tokenizer(config: ConfigDict) -> Tokenizer:
    tokenizer = huggingface.load_tokenizer(huggingface.find(config.tokenizer.path))
    if tokenizer is None:
        raise UserError(f"config.tokenizer.path: {config.tokenizer.path} holds no tokenizer")
    return tokenizer


def vocabulary(tokenizer: Any) -> int:
    """The number of tokens of a tokenizer."""
    return len(tokenizer)


def _special(tokenizer: Any, name: str) -> int:
    value = getattr(tokenizer, name, None)
    if value is None:
        raise UserError(f"the tokenizer has no {name.removesuffix('_id')}, which a model needs")
    return int(value)
