"""Requests from what a user names: a config, a checkpoint's `config.json`, an architecture."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pid_jax import models
from pid_jax.checkpoints import contents, huggingface
from pid_jax.checkpoints.orbax import MODEL
from pid_jax.compile_ahead import architectures
from pid_jax.compile_ahead.programs import TRAINING, ProgramRequest
from pid_jax.compile_ahead.targets import Target
from pid_jax.data.batching import BatchShape, bucket
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config

DEFAULT_SHAPE = BatchShape(8, 512, 30, 9, 16)
"""Sizes without a config: a batch of dialogue states, every slot a prompt."""

PACKED_SIZES = ("rows", "row_tokens")
"""Names of sizes of a config that packs prompts."""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where the model and the sizes come from. None and () for what the user did not name."""

    config: str | None = None
    """A config file or its name."""
    overrides: Sequence[str] = ()
    """`--config.a.b=value`."""
    checkpoint: str | None = None
    """A `config.json`, the directory that has one, or a training workdir."""
    architecture: str | None = None
    """A key of `architectures.ARCHITECTURES`."""


def request_of(
    target: Target,
    program: str,
    source: ModelSource,
    *,
    sizes: Mapping[str, int | None],
    mesh: Mapping[str, int | None],
    method: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
) -> ProgramRequest:
    """The request of a user. None stands for the config's value, or for a default.

    sizes: by the names of `BatchShape`'s fields and of `PACKED_SIZES`. mesh: by the names of
    `sharding.make_mesh`.
    Raises `UserError` if a value is out of range, or if no model is named.
    """
    if weights is not None and program in TRAINING:
        raise UserError(
            f"--weights={weights} is for inference: choose --program=prefill, decode or score"
        )
    training = _training(source, program)
    config = model_config(source, training)
    shape = DEFAULT_SHAPE if source.config is None else shape_of(training)
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}={value}: it must be at least 1")
    rows = sizes.get("rows"), sizes.get("row_tokens")
    if any(rows) and not all(rows):
        raise UserError("--rows and --row-tokens: name both or neither")
    named = {k: v for k, v in sizes.items() if v is not None and k not in PACKED_SIZES}
    shape = dataclasses.replace(shape, **named)
    if training is not None and dtype is not None:
        with training.unlocked():
            training.model.dtype = dtype
    trained_dtype = None if training is None else training.model.dtype
    if trained_dtype == "auto":
        trained_dtype = None
    request = ProgramRequest(
        target=target,
        program=program,
        config=config,
        shape=shape,
        method=method or ("pid" if training is None else training.method),
        dtype=dtype or trained_dtype or "bfloat16",
        weights=weights,
        mesh=_mesh(mesh, training if source.config is not None else None, program),
        training=training,
        row_shape=(rows[0], rows[1]) if rows[0] and rows[1] else None,
    )
    if request.row_shape is not None and not request.packs:
        raise UserError("--rows and --row-tokens are for a training config that packs prompts")
    return request


def _training(source: ModelSource, program: str) -> Any:
    """The training config: that of a file, or the defaults for a program that needs one."""
    if source.config is None and program not in TRAINING and not source.overrides:
        return None
    from pid_jax.training import config as configuration

    if source.config is not None:
        return configuration.load(source.config, source.overrides)
    defaults = configuration.default()
    with defaults.unlocked():
        defaults.data.packing = False  # the sizes that flags name are those of single prompts
    return configuration.with_overrides(defaults, source.overrides, "the defaults")


def model_config(source: ModelSource, training: Any) -> Config:
    """The configuration of the model: of --checkpoint, --architecture or the config."""
    if source.checkpoint is not None and source.architecture is not None:
        raise UserError("--checkpoint and --architecture name two models: leave one out")
    if source.architecture is not None:
        return models.config_from_hf(architectures.get(source.architecture))
    if source.checkpoint is not None:
        return read_checkpoint(source.checkpoint)
    if source.config is None:
        raise UserError(
            "no model: name one with --architecture=t5-base, --checkpoint=DIRECTORY or "
            "--config=FILE"
        )
    if not training.model.init:
        sizes = training.model.architecture.to_dict()
        return models.config_from_hf({**sizes, "vocab_size": training.tokenizer.vocab_size})
    init = training.model.init
    if Path(init).exists():
        return read_checkpoint(init)
    published = architectures.find(init)
    if published is None:
        raise UserError(
            f"config.model.init is {init!r}, whose sizes are not known here: name its config.json "
            "with --checkpoint, or sizes with --architecture"
        )
    return models.config_from_hf(published)


def read_checkpoint(path: str | Path) -> Config:
    """The configuration in a `config.json`, in a directory that has one, or of a training run."""
    path = Path(path)
    if path.is_file():
        return models.config_from_hf(contents.read_json(path))
    run = contents.run_of(path)
    if run is not None:
        path = run.workdir / MODEL
    if not (path / "config.json").is_file():
        raise UserError(
            f"--checkpoint={path}: no config.json there: name the file, a directory that has it, "
            "or a published size with --architecture"
        )
    return huggingface.read_config(path)


def shape_of(config: Any) -> BatchShape:
    """The largest shape that training with a config compiles."""
    data = config.data
    return BatchShape(
        documents=data.batch_size,
        document_tokens=bucket(data.document_tokens, multiple=data.document_multiple),
        prompts=bucket(data.max_prompts),
        prompt_tokens=bucket(1 + data.prompt_tokens),
        target_tokens=bucket(data.target_tokens),
    )


def _mesh(flags: Mapping[str, int | None], training: Any, program: str) -> dict[str, int]:
    """Sizes of the mesh: flags before the config, otherwise data in training and tensor elsewhere.

    Inference with sharded parameters has all documents on every device.
    """
    if training is not None and program in TRAINING:
        sizes = training.mesh.to_dict()
    elif program in TRAINING:
        sizes = {"data": -1, "fsdp": 1, "tensor": 1}
    else:
        sizes = {"data": 1, "fsdp": 1, "tensor": -1}
    named = {name: size for name, size in flags.items() if size is not None}
    if named and -1 not in named.values():
        # The sizes that flags name take the devices from the axis that takes the others.
        free = next((axis for axis in ("data", "fsdp", "tensor") if axis not in named), None)
        sizes = dict.fromkeys(sizes, 1) | ({free: -1} if free else {})
    elif named:
        sizes = dict.fromkeys(sizes, 1)
    return sizes | named
