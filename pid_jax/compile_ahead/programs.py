"""The product's programs for a target, traced from shapes.

Inference compiles what `BatchDecoder` compiles, training what the training loop compiles.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from pid_jax import models, sharding
from pid_jax.backends.int8 import EMBEDDING_SCALE, KERNEL_SCALE
from pid_jax.backends.settings import compiling_for
from pid_jax.compile_ahead import targets
from pid_jax.compile_ahead.targets import Target
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.data.packed_batches import bounding_row_shape
from pid_jax.data.packing import PackedBatch, PackedShape
from pid_jax.data.row_shapes import RowShape
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.device_memory import bytes_per_device
from pid_jax.errors import UserError
from pid_jax.inference.batch_decoder import BatchDecoder
from pid_jax.inference.batch_planning import BatchLimits, scored_size
from pid_jax.inference.decoding_batch import DecodingBatch
from pid_jax.models.protocol import Config, EncoderDecoder, Params
from pid_jax.programs import Executable, Programs

NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("training step",),
    "evaluate": ("evaluation",),
    "prefill": ("encode", "prefill"),
    "decode": ("decode",),
    "score": ("encode", "score"),
}
"""The values of --program, and the names of the product's programs that each of them reports."""

TRAINING = ("train", "evaluate")
"""The programs that a training config defines."""

_SCALED_AXIS = {KERNEL_SCALE: ("kernel", 1), EMBEDDING_SCALE: ("embedding", 0)}
"""For the name of scales in 8 bits: the array beside them, and its axis that has a scale each."""


@dataclass(frozen=True)
class ProgramRequest:
    """A program, its sizes, and what it is compiled for."""

    target: Target
    program: str
    """A key of `NAMES`."""
    config: Config
    """Of the model."""
    shape: BatchShape
    method: str = "pid"
    dtype: str = "bfloat16"
    """Of activations, and in inference of parameters."""
    weights: str | None = None
    """ "int8" for kernels and token embeddings in 8 bits in inference. None: `dtype`."""
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Sizes of `sharding.make_mesh`."""
    training: Any = None
    """The `ConfigDict` of a training run."""
    row_shape: tuple[int, int] | None = None
    """Rows of a packed document, and tokens of each. None for those that any batch of `shape`
    fits."""

    @property
    def has_mixed_products(self) -> bool:
        """Whether a GPU multiplies weights in 8 bits with wider activations."""
        return self.weights is not None and self.target.chip.platform == "gpu"

    @property
    def packs(self) -> bool:
        """Whether the batches are packed, as in a training run with this config."""
        packing = self.training is not None and self.training.data.packing
        return bool(packing and self.method == "pid" and self.program in TRAINING)

    @property
    def arranged(self) -> BatchShape | PackedShape:
        """The sizes of the arrays: under "pie" each pair of document and prompt is a document."""
        shape = self.shape
        if self.packs:
            rows = bounding_row_shape(shape.prompts, shape.prompt_tokens - 1, shape.target_tokens)
            if self.row_shape is not None:
                targets = min(rows.target_tokens, math.prod(self.row_shape))
                rows = RowShape(*self.row_shape, targets)
            return PackedShape(shape.documents, shape.document_tokens, *rows)
        if self.method == "pid":
            return shape
        return self.pairs

    @property
    def pairs(self) -> BatchShape:
        """The sizes under "pie"."""
        return BatchShape(
            documents=self.shape.documents * self.shape.prompts,
            document_tokens=self.shape.document_tokens + self.shape.prompt_tokens - 1,
            prompts=1,
            prompt_tokens=1,
            target_tokens=self.shape.target_tokens,
        )

    @property
    def unpacked(self) -> BatchShape:
        """`arranged`, without packing."""
        return self.shape if self.method == "pid" else self.pairs


@dataclass(frozen=True)
class TracedProgram:
    """One of the product's programs, not compiled yet."""

    executable: Executable
    parameter_bytes: int
    """On each device."""
    optimizer_bytes: int


def traced(request: ProgramRequest) -> Iterator[TracedProgram]:
    """The programs of a request, each traced when it is next.

    Raises `UserError` for a missing compiler, and for sizes or a mesh that do not fit.
    """
    devices = targets.devices(request.target)
    _check(request)
    with compiling_for(request.target.chip.platform):
        programs = _training if request.program in TRAINING else _inference
        try:
            yield from programs(request, devices)
        except ValueError as error:
            if not any(word in str(error) for word in ("divisible", "evenly divide")):
                raise
            raise UserError(
                f"the mesh {_listed(request.mesh)} does not divide an axis of the model or of the "
                f"batch: {str(error).splitlines()[0]}"
            ) from error


def _training(request: ProgramRequest, devices: Any) -> Iterator[TracedProgram]:
    from pid_jax.training import assembly, compiled, memory, optimizer, step, trained_part

    config = request.training
    mesh = sharding.make_mesh(**request.mesh, devices=devices)
    shape = request.arranged
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    factor = config.train.micro_batches if request.program == "train" else 1
    if shape.documents % (shares * factor):
        times = f", times config.train.micro_batches={factor}" if factor > 1 else ""
        raise UserError(
            f"{shape.documents} documents: they must be a multiple of {shares * factor}, the "
            f"number of devices along the mesh axes data and fsdp{times}"
        )
    model = assembly.build_model(config, request.config)
    update = optimizer.build(config)
    parts = trained_part.parts_of_state(config, model)
    shardings = step.state_shardings(mesh, model, update, **parts)
    train_step, evaluation = compiled.training_programs(
        config, mesh, model, update, optimizer.learning_rate(config), shardings
    )
    state = compiled.abstract_state(model, update, shardings, **parts)
    batch = compiled.abstract_batch(shape, mesh)
    parameters, optimizer_state = memory.state_bytes(state)
    if request.program == "train":
        executable = train_step.trace(state, batch, label=shape)
        yield TracedProgram(executable, parameters, optimizer_state)
    else:
        yield TracedProgram(evaluation.trace(state.evaluated, batch, label=shape), parameters, 0)


def _inference(request: ProgramRequest, devices: Any) -> Iterator[TracedProgram]:
    model = models.build(request.config, jnp.dtype(request.dtype))
    params = _decoding_params(model, request, devices)
    decoder = BatchDecoder(model, params, Programs())
    shape = request.unpacked
    if request.program == "score":
        packed = scoring_shape(shape)
        executables = decoder.scoring_executables(_full_packed_batch(packed), packed)
    else:
        batch = _full_batch(shape)
        prompts = shape.documents, shape.prompts
        decoding = DecodingBatch(
            batch,
            np.ones(prompts, bool),
            np.full(prompts, shape.target_tokens, np.int32),
            shape,
            DecodingOptions(),
            compact=False,
        )
        executables = decoder.executables(decoding)
    wanted = NAMES[request.program]
    for executable in executables:
        if executable.name in wanted:
            yield TracedProgram(executable, bytes_per_device(params), 0)
        if executable.name == wanted[-1]:
            return


def _decoding_params(model: EncoderDecoder, request: ProgramRequest, devices: Any) -> Params:
    """Shapes of the parameters as `PidModel` decodes with them, on the target's devices."""
    dtype = jnp.dtype(request.dtype)
    raw = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), models.abstract_params(model)
    )
    function = model.int8_params if request.weights == "int8" else model.decoding_params
    # The number of devices decides whether kernels are joined.
    with compiling_for(request.target.chip.platform, len(devices)):
        params = jax.eval_shape(function, raw)
    if len(devices) == 1:
        where = SingleDeviceSharding(devices[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), params
        )
    mesh = sharding.make_mesh(**request.mesh, devices=devices)
    by_path = jax.tree_util.tree_leaves_with_path(
        sharding.param_shardings(mesh, models.logical_axes(model))
    )
    known = dict(by_path)
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(raw)}

    def sharded(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = path[-1].key
        if name in _SCALED_AXIS:
            # A scale is where its channel is.
            scaled, axis = _SCALED_AXIS[name]
            split = known[(*path[:-1], jax.tree_util.DictKey(scaled))].spec
            where = NamedSharding(mesh, PartitionSpec(split[axis]))
        elif shapes.get(path) == leaf.shape:
            where = known[path]
        else:
            # Second copies in another layout, if a backend has them, are on every device.
            where = sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(sharded, params)


def scoring_shape(shape: BatchShape) -> PackedShape:
    """The packed rows in which `PidModel.score` scores such prompts and targets."""
    prompts = [[0] * (shape.prompt_tokens - 1)] * shape.prompts
    targets = [[0] * shape.target_tokens] * shape.prompts
    example = TokenizedExample("", [0] * shape.document_tokens, prompts, targets)
    return PackedShape(shape.documents, *scored_size(example, BatchLimits.by_default()))


def _full_packed_batch(shape: PackedShape) -> PackedBatch:
    """A packed batch. Only its shapes and dtypes matter."""
    documents = shape.documents, shape.document_tokens
    rows = shape.documents, shape.rows, shape.row_tokens
    targets = shape.documents, shape.target_tokens
    return PackedBatch(
        documents=np.zeros(documents, np.int32),
        document_mask=np.ones(documents, bool),
        tokens=np.zeros(rows, np.int32),
        segments=np.ones(rows, np.int32),
        positions=np.zeros(rows, np.int32),
        predicting=np.zeros(targets, np.int32),
        targets=np.zeros(targets, np.int32),
        target_mask=np.ones(targets, bool),
    )


def _full_batch(shape: BatchShape) -> Batch:
    """A batch without padding. Only its shapes and dtypes matter."""
    prompts = shape.documents, shape.prompts
    return Batch(
        documents=np.zeros((shape.documents, shape.document_tokens), np.int32),
        document_mask=np.ones((shape.documents, shape.document_tokens), bool),
        prompts=np.zeros((*prompts, shape.prompt_tokens), np.int32),
        prompt_mask=np.ones((*prompts, shape.prompt_tokens), bool),
        targets=np.zeros((*prompts, shape.target_tokens), np.int32),
        target_mask=np.ones((*prompts, shape.target_tokens), bool),
    )


def _check(request: ProgramRequest) -> None:
    """Raises `UserError` for sizes that the program or the model does not have."""
    shape, config = request.unpacked, request.config
    if request.program == "decode" and shape.target_tokens < 2:
        raise UserError(
            f"--max-new-tokens={shape.target_tokens}: the prefill selects the first token, so "
            "--program=decode needs at least 2"
        )
    decoder_tokens = shape.prompt_tokens + shape.target_tokens
    for name, tokens, most in (
        ("--document-tokens", shape.document_tokens, config.max_document_tokens),
        ("--prompt-tokens and --target-tokens", decoder_tokens - 1, config.max_decoder_tokens),
    ):
        if most is not None and tokens > most:
            raise UserError(f"{name}: the model has positions for {most} tokens, not {tokens}")


def _listed(mesh: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh.items())
