"""Hugging Face checkpoints, both ways: `config.json`, safetensors and the tokenizer.

Torch is never needed. Weights come from `model.safetensors` or from the shards that
`model.safetensors.index.json` lists.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from pid_jax import models
from pid_jax.atomic_file import filling
from pid_jax.checkpoints import contents, finite, generation_config
from pid_jax.errors import UserError
from pid_jax.models.config_reading import end_tokens
from pid_jax.models.protocol import Config, EncoderDecoder, Family, Params, TensorPath

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
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
"""Files of a tokenizer that are none by themselves."""
FILES = ("*.json", "*.safetensors", *_TOKENIZER_FILES)
"""Patterns of all that is read. Pickled weights are not: they would be refused."""
_WEIGHT_FILES = ("model-*-of-*.safetensors", WEIGHTS_INDEX, WEIGHTS)
SHARD_BYTES = 5 * 10**9
"""The largest file written; what is larger is split and indexed."""


def find(path_or_hub_id: str | Path) -> Path:
    """The local directory of a checkpoint, fetched from the hub unless it is one already.

    Raises `UserError` when it is neither a directory nor to be had from the hub.
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
            f"{name}: no such directory, and not to be had from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def read_config(directory: Path) -> Config:
    """The configuration in a directory's `config.json` and `generation_config.json`.

    As in transformers, the latter alone, where it is there, says which tokens are forced, and it
    has the last word on the start token and on those that end outputs. Its other settings are
    what `read_generation` gives.
    """
    content = _read_json(directory / "config.json")
    if (directory / GENERATION).is_file():
        generation = _read_json(directory / GENERATION)
        content |= {key: generation.get(key) for key in _FORCED}
        for key in ("decoder_start_token_id", "eos_token_id"):
            if generation.get(key) is not None:
                content[key] = generation[key]
    return models.config_from_hf(content)


def read_generation(directory: Path) -> dict[str, Any]:
    """What a directory's files say of generation, as `generation_config.json` says it."""
    if (directory / GENERATION).is_file():
        return _read_json(directory / GENERATION)
    return generation_config.of_config(_read_json(directory / "config.json"))


def load(
    path_or_hub_id: str | Path, dtype: DTypeLike | None = jnp.float32
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """The model, its parameters in `dtype`, its tokenizer or None, and `read_generation` of it.

    dtype: None keeps each tensor's own.

    Raises `UserError` naming every tensor that is missing, not the model's, or of another
    shape, and for weights that are pickled.
    """
    directory = find(path_or_hub_id)
    if not (directory / "config.json").exists():
        raise UserError(contents.why_no_config(directory))
    config = read_config(directory)
    family = models.family_of(config.model_type)
    if not any(directory.glob("*.safetensors*")):
        files = [path.name for path in directory.iterdir()]
        if directory != Path(path_or_hub_id):  # of those that are not read nothing was fetched
            files = _files_on_hub(str(path_or_hub_id)) or files
        raise UserError(contents.why_no_weights(str(path_or_hub_id), files))
    with _open_weights(directory) as tensors:
        config, names = _match(family, config, tensors)
        params = _read_params(config, family, names, tensors, directory, dtype)
    model = models.build(config, activations_of(params))
    return model, params, load_tokenizer(directory), read_generation(directory)


def activations_of(params: Params) -> DTypeLike:
    """bfloat16 where all parameters are; else float32: float16 has not the range for them."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    return jnp.bfloat16 if dtypes == {jnp.dtype(jnp.bfloat16)} else jnp.float32


def _match(
    family: Family, config: Config, tensors: Mapping[str, Any]
) -> tuple[Config, dict[str, str]]:
    """Settles which tensors are only second names: those equal to the tensor they repeat.

    Returns the configuration that fits the rest, and for each tensor name that the family
    knows the name under which the checkpoint has it.
    """
    known = family.tensors(config).keys() | family.aliases.keys() | family.ignored
    held = {}
    left_out = []
    for name in tensors:
        renamed = family.rename(name)
        if renamed is None:
            left_out.append(name)
            continue
        prefixed = family.prefix + renamed
        full = prefixed if renamed not in known and prefixed in known else renamed
        if full not in family.ignored:
            held[full] = name
    if left_out:
        log.warning(
            "%s: %d tensors are left out, for parts that are not supported here, such as %s",
            family.about.name,
            len(left_out),
            left_out[0],
        )
    for alias, name in family.aliases.items():
        if alias not in held:
            continue
        if name not in held:
            held[name] = held.pop(alias)
        elif np.array_equal(tensors[held[alias]](), tensors[held[name]]()):
            del held[alias]
    return config.with_tensors(held), held


def _read_params(
    config: Config,
    family: Family,
    names: Mapping[str, str],
    tensors: Mapping[str, Callable[[], np.ndarray]],
    directory: Path,
    dtype: DTypeLike | None,
) -> Params:
    places = family.tensors(config)
    expected = flatten_dict(models.abstract_params(models.build(config)))
    problems = []
    of_path: dict[tuple[str, ...], str] = {}
    for name in sorted(places.keys() & names.keys()):
        other = of_path.setdefault(places[name].path, name)
        if other != name:
            problems.append(f"{name} is not {other}, but the model has one tensor for both")
    made = {
        places[name].path: make
        for name, make in family.defaults.items()
        if places[name].path not in of_path
    }
    present = of_path.keys() | made.keys()
    missing = sorted(name for name, place in places.items() if place.path not in present)
    extra = sorted(names.keys() - places.keys())
    problems += [f"missing: {name}" for name in missing]
    problems += [f"not of this model: {name}" for name in extra]
    leaves = {}
    for path, name in of_path.items():
        transposed = places[name].transposed
        tensor = tensors[names[name]]()
        tensor = tensor.T if transposed else tensor
        wanted = expected[path].shape
        if tensor.shape != wanted:
            shapes = (tensor.shape[::-1], wanted[::-1]) if transposed else (tensor.shape, wanted)
            problems.append(f"{name} has shape {shapes[0]}, but config.json asks for {shapes[1]}")
        elif (problem := finite.why_unusable(name, tensor)) is not None:
            problems.append(problem)
        elif not problems:
            leaves[path] = jnp.asarray(np.ascontiguousarray(tensor), dtype)
    for path, make in made.items():
        made_as = dtype or next((leaf.dtype for leaf in leaves.values()), None)
        leaves[path] = jnp.asarray(make(expected[path].shape), made_as)
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise UserError(f"{directory}: tensors that cannot be used:\n  " + "\n  ".join(shown))
    return unflatten_dict(leaves)


@contextmanager
def _open_weights(directory: Path) -> Iterator[Mapping[str, Callable[[], np.ndarray]]]:
    """Every tensor's name and how to read it; nothing is read before it is asked for."""
    import safetensors

    index = directory / WEIGHTS_INDEX
    for path in (directory / WEIGHTS, index):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: a symbolic link to {path.readlink()}, which is not there")
    if (directory / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f'{index}: "weight_map" is missing')
        files = sorted(set(weight_map.values()))
    else:
        names = [path.name for path in directory.iterdir()]
        raise UserError(contents.why_no_weights(str(directory), names))
    with ExitStack() as stack:
        tensors: dict[str, Callable[[], np.ndarray]] = {}
        for name in files:
            path = directory / name
            if path.parent.resolve() != directory.resolve() or not path.is_file():
                raise UserError(f"{index}: the shard {name!r} is not in the directory")
            contents.check_readable(path)
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a whole safetensors file ({error})") from error
            for tensor in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensors[tensor] = _reader(file, tensor)
        yield tensors


def _files_on_hub(name: str) -> list[str]:
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().list_repo_files(name)
    except Exception:  # offline, say: then what is missing is all that can be said
        return []


def _reader(file: Any, name: str) -> Callable[[], np.ndarray]:
    return lambda: file.get_tensor(name)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such file")
    contents.check_readable(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content


def load_tokenizer(directory: Path) -> Any | None:
    """The tokenizer in a checkpoint's directory, or None where there is none.

    `spiece.model` alone is enough, as is a `tokenizer_config.json` for a tokenizer that
    needs no vocabulary (ByT5).
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
    except Exception as error:  # each tokenizer class fails in its own ways
        raise UserError(f"{directory}: the tokenizer cannot be loaded: {error}") from error


def save(
    directory: str | Path,
    model: EncoderDecoder,
    params: Params,
    tokenizer: Any | None = None,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes a directory from which transformers' `from_pretrained` gives the same logits.

    generation: what `generation_config.json` holds beside the tokens of the configuration.

    (LED's, if its calls pass the `global_attention_mask` that the model has: 1 for the first
    token.) The weights keep their dtype. In an existing directory files of the same names, older
    weights and an older model's tokenizer are replaced when all new ones are complete; until then
    nothing is changed. Raises UserError where that cannot be, or where the directory is a training
    run's.
    """
    directory = Path(directory)
    if contents.is_run(directory):
        raise UserError(
            f"{directory} is a training run, which would lose its config.json: name another "
            "directory"
        )
    flat = flatten_dict(params)
    places = models.family_of(model.config.model_type).tensors(model.config)
    shards = _split(places, flat)
    outdated = (*_outdated_with(tokenizer, directory), *_WEIGHT_FILES)
    with filling(directory, outdated) as folder:
        if len(shards) == 1:
            _write_shard(folder / WEIGHTS, shards[0], places, flat)
        else:
            weight_map: dict[str, str] = {}
            for number, names in enumerate(shards, start=1):
                file = f"model-{number:05}-of-{len(shards):05}.safetensors"
                _write_shard(folder / file, names, places, flat)
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
    """Writes everything of a checkpoint but its weights. generation: as in `save`.

    Raises UserError where it cannot.
    """
    with filling(directory, _outdated_with(tokenizer, Path(directory))) as folder:
        _write_config(folder, config, tokenizer, dtype, generation)


def _outdated_with(tokenizer: Any | None, directory: Path) -> tuple[str, ...]:
    """The files of a tokenizer that go if this one does not write them: another would read them.

    One that lies there without a model stays, beside a model that has none.
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
    places: Mapping[str, TensorPath], flat: Mapping[tuple[str, ...], jax.Array]
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, place in places.items():
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
    places: Mapping[str, TensorPath],
    flat: Mapping[tuple[str, ...], jax.Array],
) -> None:
    from safetensors.numpy import save_file

    tensors = {}
    for name in names:
        leaf, transposed = np.asarray(flat[places[name].path]), places[name].transposed
        tensors[name] = np.ascontiguousarray(leaf.T if transposed else leaf)
    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
