"""Random checkpoints for all engines, generated once and cached."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.workloads import VOCABULARY, model_config

SEED = 0


def default_cache() -> Path:
    """$XDG_CACHE_HOME/pid_jax/benchmarks, by default ~/.cache/pid_jax/benchmarks."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "pid_jax" / "benchmarks"


def checkpoint(name: str, cache: Path) -> Path:
    """A directory in the Hugging Face layout with random weights for one of `MODELS`."""
    directory = cache / f"{name}-random-{SEED}"
    if not directory.is_dir():
        config = model_config(name)
        with _complete(directory) as unfinished:
            text = json.dumps({"architectures": ["T5ForConditionalGeneration"], **config}, indent=1)
            (unfinished / "config.json").write_text(text, encoding="utf-8")
            weights = unfinished / "model.safetensors"
            save_file(_random_tensors(config), weights, metadata={"format": "pt"})
    return directory


def _random_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a T5 1.0, by transformers' names, with scales unlike its initialisation.

    A newly initialised T5 repeats its last input for every document, so engines would agree
    trivially. Larger queries make attention select tokens instead of averaging over them. Smaller
    embeddings make the next token depend on the layers. Small residuals in the encoder make its
    outputs differ by token and limit the growth of rounding errors.
    """
    random = np.random.default_rng(SEED)
    width, vocabulary = config["d_model"], config["vocab_size"]
    heads, into = config["num_heads"], width**-0.5
    attention_width, feed_forward = heads * config["d_kv"], config["d_ff"]
    tensors: dict[str, np.ndarray] = {}

    def draw(name: str, rows: int, columns: int, deviation: float) -> None:
        values = random.standard_normal((rows, columns), np.float32) * np.float32(deviation)
        tensors[f"{name}.weight"] = values

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)

    def attention(name: str, sharpness: float, added: float) -> None:
        draw(f"{name}.q", attention_width, width, sharpness * into * config["d_kv"] ** -0.5)
        draw(f"{name}.k", attention_width, width, into)
        draw(f"{name}.v", attention_width, width, into)
        draw(f"{name}.o", width, attention_width, added * attention_width**-0.5)

    draw("shared", vocabulary, width, 0.1)
    encoder = {"SelfAttention": 3.0}
    decoder = {"SelfAttention": 3.0, "EncDecAttention": 6.0}
    for stack, layers, attentions, added in (
        ("encoder", config["num_layers"], encoder, 0.1),
        ("decoder", config["num_decoder_layers"], decoder, 1.0),
    ):
        for layer in (f"{stack}.block.{index}.layer" for index in range(layers)):
            for part, (name, sharpness) in enumerate(attentions.items()):
                attention(f"{layer}.{part}.{name}", sharpness, added)
                norm(f"{layer}.{part}.layer_norm")
            last = f"{layer}.{len(attentions)}"
            draw(f"{last}.DenseReluDense.wi", feed_forward, width, into)
            draw(f"{last}.DenseReluDense.wo", width, feed_forward, 0.1 * added * feed_forward**-0.5)
            norm(f"{last}.layer_norm")
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        draw(bias, 32, heads, into)
        norm(f"{stack}.final_layer_norm")
    return tensors


class _Numbers:
    """A tokenizer for the converter, in which a token's text is its id in decimal digits."""

    pad_token, eos_token, unk_token = "0", "1", "2"

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(VOCABULARY)}

    def convert_ids_to_tokens(self, token: int) -> str:
        return str(token)


def converted(name: str, cache: Path) -> Path:
    """`checkpoint` in CTranslate2's format, in float32. Tokens are ids in decimal digits.

    Raises ImportError without ctranslate2, torch or transformers.
    """
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> _Numbers:
            return _Numbers()

    source = checkpoint(name, cache)
    directory = source.with_name(f"{source.name}-ctranslate2-{ctranslate2.__version__}")
    if not directory.is_dir():
        with _complete(directory) as unfinished:
            Converter(str(source)).convert(str(unfinished), force=True)
    return directory


@contextmanager
def _complete(directory: Path) -> Iterator[Path]:
    """A temporary directory, renamed to `directory` if the block ends without an error."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".writing-", dir=directory.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
