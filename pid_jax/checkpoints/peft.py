"""LoRA adapters in the layout of PEFT: adapter_config.json and adapter_model.safetensors.

transformers and peft load what is written here with `PeftModel.from_pretrained`. Adapters are read
to be merged into the model that they name. Neither torch nor peft is needed.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pid_jax import models, sharding
from pid_jax.atomic_file import filling
from pid_jax.checkpoints import contents, finite, huggingface
from pid_jax.checkpoints.partial import PartialInit
from pid_jax.checkpoints.placement import Path as ParameterPath
from pid_jax.errors import UserError
from pid_jax.models import lora
from pid_jax.models.lora import KERNEL, A, B, Lora
from pid_jax.models.protocol import Config, EncoderDecoder, Family, Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NOT_SUPPORTED = (
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
)
"""Keys of adapter_config.json that must be absent, null, false or empty."""


def is_adapter(directory: Path) -> bool:
    """Whether a directory has an adapter, and no model of its own."""
    return (directory / CONFIG).is_file() and not any(directory.glob("model*.safetensors*"))


def base_of(directory: Path) -> str:
    """The model that an adapter belongs to: a directory or a hub id. Raises UserError."""
    base = contents.read_json(directory / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f'{directory / CONFIG}: "base_model_name_or_path" names no model')
    return base


def load(
    directory: Path,
    dtype: DTypeLike | None,
    *,
    on_host: bool = False,
    mesh: Mesh | None = None,
    partial_init: PartialInit | None = None,
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """The base model of an adapter, with the adapter merged into its kernels.

    The arguments and the results are those of `huggingface.load`. The tokenizer is that of the
    adapter's directory, if it has one. Raises UserError for what is not supported of PEFT.
    """
    about = contents.read_json(directory / CONFIG)
    scale = _scale(directory / CONFIG, about)
    stored = _read_tensors(directory / WEIGHTS)
    base = base_of(directory)
    try:
        model, params, tokenizer, generation = huggingface.load(
            base, dtype, on_host=on_host, mesh=mesh, partial_init=partial_init
        )
    except UserError as error:
        raise UserError(f"{directory}: an adapter of {base}: {error}") from error
    matrices = _matrices(directory / WEIGHTS, stored, model.config)
    flat = flatten_dict(params)
    for path, matrix in matrices.items():
        shape = flat[(*path[:-1], KERNEL)].shape
        axis = 0 if path[-1] == A else 1
        if matrix.ndim != 2 or matrix.shape[axis] != shape[axis]:
            raise UserError(
                f"{directory / WEIGHTS}: the adapter of {'/'.join(path[:-1])} has the shape "
                f"{matrix.shape}, but the kernel in {base} is {shape}: is this its base model?"
            )
        if on_host:
            flat[path] = matrix
        else:
            where = None if mesh is None else sharding.replicated(mesh)
            flat[path] = jax.device_put(matrix, where)
    merged = lora.merged(unflatten_dict(flat), scale)
    own = huggingface.load_tokenizer(directory)
    return model, merged, tokenizer if own is None else own, generation


def save(
    directory: str | Path,
    config: Config,
    base: str,
    adapter: Lora,
    matrices: Mapping[ParameterPath, np.ndarray],
) -> None:
    """Writes an adapter, as `PeftModel.from_pretrained` of peft reads it.

    config: of the model. base: the directory or hub id of the model without the adapter. matrices:
    float32, by path. When both files are complete, they replace
    files of these names, and those of a merged export. Raises
    UserError if writing fails.
    """
    from safetensors.numpy import save_file

    family = models.family_of(config.model_type)
    modules = {
        place.path[:-1]: family.module_name(name.removesuffix(".weight"))
        for name, place in family.tensors(config).items()
        if place.path[-1] == KERNEL
    }
    tensors = {
        f"{_PREFIX}{modules[path[:-1]]}.lora_{'A' if path[-1] == A else 'B'}.weight": (
            np.ascontiguousarray(matrix.T)
        )
        for path, matrix in matrices.items()
    }
    about = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": str(Path(base).absolute()) if Path(base).is_dir() else base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted({modules[path[:-1]] for path in matrices}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
    }
    with filling(directory, instead_of=("model*.safetensors*",)) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _scale(file: Path, about: Mapping[str, Any]) -> float:
    """The factor of the product of the two matrices. Raises UserError for other adapters."""
    wrong = [key for key in _NOT_SUPPORTED if about.get(key)]
    if about.get("peft_type") != "LORA":
        wrong = ["peft_type"]
    if about.get("bias", "none") != "none":
        wrong.append("bias")
    if wrong:
        listed = ", ".join(f'"{key}": {json.dumps(about.get(key))}' for key in wrong)
        raise UserError(
            f"{file}: {listed}: only LoRA of the kernels of linear layers is supported. Merge the "
            "adapter with peft: merge_and_unload() of the PeftModel, then save_pretrained"
        )
    try:
        rank, alpha = int(about["r"]), float(about["lora_alpha"])
        return alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f'{file}: "r" and "lora_alpha" must be numbers ({error!r})') from error


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    import safetensors
    from safetensors.numpy import load_file

    if not file.is_file():
        raise UserError(f"{file}: no such file. An adapter needs its weights as safetensors")
    contents.check_readable(file)
    try:
        tensors = load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a complete safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if (problem := finite.why_unusable(name, tensor)) is not None:
            raise UserError(f"{file}: {problem}")
    return tensors


def _matrices(
    file: Path, tensors: Mapping[str, np.ndarray], config: Config
) -> dict[ParameterPath, np.ndarray]:
    """The matrices of an adapter by their paths, float32. Raises UserError for other tensors."""
    family = models.family_of(config.model_type)
    found: dict[ParameterPath, np.ndarray] = {}
    for name, tensor in tensors.items():
        module, _, letter = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        matrix = {"lora_A": A, "lora_B": B}.get(letter)
        path = _kernel(family, config, f"{module}.weight")
        if matrix is None or path is None:
            raise UserError(
                f"{file}: {name} belongs to no kernel of {family.about.name}: is this an adapter "
                "of this model?"
            )
        found[(*path[:-1], matrix)] = tensor.astype(np.float32).T
    for path in found:
        other = (*path[:-1], B if path[-1] == A else A)
        if other not in found:
            raise UserError(f"{file}: {'/'.join(path)} is there without {other[-1]}")
    return found


def _kernel(family: Family, config: Config, name: str) -> ParameterPath | None:
    """The path of the kernel with this name in transformers. None if there is none."""
    renamed = family.rename(name)
    place = None if renamed is None else family.tensors(config).get(renamed)
    return place.path if place is not None and place.path[-1] == KERNEL else None
