"""Hugging Face checkpoints, both ways: `config.json`, safetensors and the tokenizer.

Needs no torch. Weights are in `model.safetensors` or in the shards that
`model.safetensors.index.json` lists.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pid_jax import models
from pid_jax.atomic_file import filling
from pid_jax.backends.int8 import is_quantized
from pid_jax.checkpoints import contents, generation_config, tensors
from pid_jax.checkpoints.partial import PartialInit
from pid_jax.checkpoints.tensors import WEIGHTS, WEIGHTS_INDEX
from pid_jax.errors import UserError
from pid_jax.models.config_reading import end_tokens
from pid_jax.models.protocol import Config, EncoderDecoder, Params, TensorPath

GENERATION = generation_config.FILE
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "*.model",
    "*.vocab",
    "vocab.json",
    "merges.txt",
)
_BESIDE_TOKENIZERS = (
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*",
)
"""Files of a tokenizer that are not sufficient to load one."""
FILES = ("*.json", "*.safetensors", *_TOKENIZER_FILES)
"""Patterns of all files that are read. Pickled weights are excluded, because they are refused."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_WEIGHT_FILES = ("model-*-of-*.safetensors", WEIGHTS_INDEX, WEIGHTS)
SHARD_BYTES = 5 * 10**9
"""Maximum size of a weights file. Larger models are written as shards and an index."""


def find(path_or_hub_id: str | Path) -> Path:
    """The local directory of a checkpoint. Downloads it from the hub unless it is a directory.

    Raises `UserError` if it is neither a directory nor available from the hub.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.exists():
        raise UserError(f"{name}: a file: name the directory of the checkpoint")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such directory")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: no such directory, and not available from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def read_config(directory: Path) -> Config:
    """The configuration in a directory's `config.json` and `generation_config.json`.

    As in transformers, `generation_config.json`, if present, determines the forced tokens and
    overrides the start and end tokens. `read_generation` returns its other settings. Raises
    `UserError` for a missing or invalid file.
    """
    content = contents.read_json(directory / "config.json")
    if (directory / GENERATION).is_file():
        generation = contents.read_json(directory / GENERATION)
        content |= {key: generation.get(key) for key in _FORCED}
        for key in ("decoder_start_token_id", "eos_token_id"):
            if generation.get(key) is not None:
                content[key] = generation[key]
    return models.config_from_hf(content)


def read_generation(directory: Path) -> dict[str, Any]:
    """A directory's generation configuration, with the keys of `generation_config.json`."""
    if (directory / GENERATION).is_file():
        return contents.read_json(directory / GENERATION)
    return generation_config.of_config(contents.read_json(directory / "config.json"))


def load(
    path_or_hub_id: str | Path,
    dtype: DTypeLike | None = jnp.float32,
    *,
    on_host: bool = False,
    mesh: Mesh | None = None,
    partial_init: PartialInit | None = None,
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """Loads the model, its parameters, its tokenizer (or None) and its generation configuration.

    dtype: of the parameters, None for that of each tensor. on_host: parameters are arrays of NumPy
    instead of arrays on the default device. mesh: parameters are sharded over its devices, and each
    share is read from the files as it is needed. partial_init: loads what fits a model with another
    configuration.

    Raises `UserError` for missing, unexpected and misshapen tensors, naming them, for pickled
    weights, and for parameters that the mesh does not divide.
    """
    directory = find(path_or_hub_id)
    if not (directory / "config.json").exists():
        raise UserError(contents.why_no_config(directory))
    config = read_config(directory)
    if partial_init is not None:
        config = partial_init.config(config)
    family = models.family_of(config.model_type)
    if not any(directory.glob("*.safetensors*")):
        files = [path.name for path in directory.iterdir()]
        if directory != Path(path_or_hub_id):  # the download has only the files that are read
            files = _files_on_hub(str(path_or_hub_id)) or files
        raise UserError(contents.why_no_weights(str(path_or_hub_id), files))
    with tensors.open_weights(directory) as weights:
        config, names = tensors.match_tensors(family, config, weights)
        params = tensors.read_params(
            config,
            family,
            names,
            weights,
            directory,
            dtype,
            on_host=on_host,
            mesh=mesh,
            partial_init=partial_init,
        )
    model = models.build(config, activations_of(params))
    return model, params, load_tokenizer(directory), read_generation(directory)


def activations_of(params: Params) -> DTypeLike:
    """The dtype of activations: bfloat16 if all parameters are, else float32, never float16."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    return jnp.bfloat16 if dtypes == {jnp.dtype(jnp.bfloat16)} else jnp.float32


def _files_on_hub(name: str) -> list[str]:
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().list_repo_files(name)
    except Exception:  # for example offline
        return []


def load_tokenizer(directory: Path) -> Any | None:
    """The tokenizer in a checkpoint's directory, or None without one.

    `spiece.model` is sufficient, as is `tokenizer_config.json` for a tokenizer without a
    vocabulary (ByT5). Raises `UserError` if it cannot be loaded.
    """
    files = {path for pattern in _TOKENIZER_FILES for path in directory.glob(pattern)}
    if not files:
        return None
    for file in sorted(files):
        if file.name != "merges.txt":  # which may be empty
            contents.check_readable(file)
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # tokenizer classes raise various errors
        raise UserError(f"{directory}: the tokenizer cannot be loaded: {error}") from error


def save(
    directory: str | Path,
    model: EncoderDecoder,
    params: Params,
    tokenizer: Any | None = None,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes a checkpoint. transformers' `from_pretrained` loads it and gives the same logits.

    generation: content of `generation_config.json` in addition to the tokens of the configuration.

    LED in transformers gives the same logits if called with a `global_attention_mask` of 1 for the
    first token. The dtype of the weights is preserved. When all new files are complete, they
    replace files of the same names, older weights and an older tokenizer in the directory. Until
    then nothing changes. Raises UserError if writing fails, for the directory of a training run,
    and for weights in 8 bits.
    """
    directory = Path(directory)
    if contents.is_run(directory):
        raise UserError(
            f"{directory} is a training run, whose config.json would be overwritten: name another "
            "directory"
        )
    if is_quantized(params):
        raise UserError(
            f"{directory} cannot be written from weights in 8 bits: load the checkpoint without "
            'weights="int8" and save that model'
        )
    flat = flatten_dict(params)
    locations = models.family_of(model.config.model_type).tensors(model.config)
    shards = _split(locations, flat)
    outdated = (*_outdated_with(tokenizer, directory), *_WEIGHT_FILES, *_ADAPTER_FILES)
    with filling(directory, outdated) as folder:
        if len(shards) == 1:
            _write_shard(folder / WEIGHTS, shards[0], locations, flat)
        else:
            weight_map: dict[str, str] = {}
            for number, names in enumerate(shards, start=1):
                file = f"model-{number:05}-of-{len(shards):05}.safetensors"
                _write_shard(folder / file, names, locations, flat)
                weight_map |= dict.fromkeys(names, file)
            size = sum(leaf.nbytes for leaf in flat.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            _write_json(folder / WEIGHTS_INDEX, index)
        dtype = str(jax.tree.leaves(params)[0].dtype)
        _write_config(folder, model.config, tokenizer, dtype, generation)


def save_config(
    directory: str | Path,
    config: Config,
    tokenizer: Any | None,
    dtype: str = "float32",
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes a checkpoint without its weights. generation: as in `save`.

    Raises UserError if writing fails.
    """
    with filling(directory, _outdated_with(tokenizer, Path(directory))) as folder:
        _write_config(folder, config, tokenizer, dtype, generation)


def _outdated_with(tokenizer: Any | None, directory: Path) -> tuple[str, ...]:
    """Patterns of the tokenizer files that the new checkpoint replaces or removes.

    A tokenizer in a directory without a model is preserved if the new model has none.
    """
    if tokenizer is None and not (directory / "config.json").exists():
        return ()
    return (*_TOKENIZER_FILES, *_BESIDE_TOKENIZERS)


def _write_config(
    folder: Path, config: Config, tokenizer: Any | None, dtype: str, generation: Mapping[str, Any]
) -> None:
    _write_json(folder / "config.json", config.to_hf() | {"dtype": dtype})
    tokens = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": end_tokens(config),
        "pad_token_id": config.pad_token_id,
    }
    forced = {key: getattr(config, key) for key in _FORCED}
    tokens |= {key: token for key, token in forced.items() if token is not None}
    others = {key: value for key, value in generation.items() if key not in _FORCED}
    _write_json(folder / GENERATION, others | tokens)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _split(
    locations: Mapping[str, TensorPath], flat: Mapping[tuple[str, ...], jax.Array]
) -> list[list[str]]:
    """The names of the tensors of each shard, at most `SHARD_BYTES` per shard."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, place in locations.items():
        tensor = flat[place.path].nbytes
        if shards[-1] and size + tensor > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor
    return shards


def _write_shard(
    path: Path,
    names: list[str],
    locations: Mapping[str, TensorPath],
    flat: Mapping[tuple[str, ...], jax.Array],
) -> None:
    from safetensors.numpy import save_file

    arrays = {}
    for name in names:
        place = locations[name]
        leaf = np.asarray(flat[place.path])
        arrays[name] = np.ascontiguousarray(leaf.T if place.transposed else leaf)
    save_file(arrays, path, metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
