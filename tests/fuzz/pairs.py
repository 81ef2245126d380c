"""Tiny random models, of transformers and of this package, whose outputs end early and late."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from pid_jax.inference.model import PidModel
from tests.helpers import bart_checkpoints
from tests.helpers.transformers_models import resemble_all

VOCABULARY = 24
FIRST_TOKEN = 2
"""0 pads, 1 ends; every token from here on may be in documents, prompts and outputs."""
OTHER_END = 6
"""Ends outputs of T5Gemma, too."""
FORCED_FIRST = 5
"""The first token of BART's outputs that have no prompt."""


class Pair(NamedTuple):
    theirs: Any
    ours: PidModel


_T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_BART_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 128,
    "bos_token_id": VOCABULARY - 1,
}
_STACK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
}


def _t5_like(name: str, directory: Path, **options: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**{**_T5_SIZES, **options})
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    _shake(model)
    model.save_pretrained(directory)
    return model


def _t5gemma(directory: Path) -> Any:
    config = transformers.T5GemmaConfig(
        encoder={**_STACK},
        decoder={**_STACK},
        eos_token_id=[1, OTHER_END],
        pad_token_id=0,
        bos_token_id=2,
        dropout_rate=0.0,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = transformers.T5GemmaForConditionalGeneration(config).eval()
    _shake(model)
    with torch.no_grad():  # transformers masks padding that is chosen: here it never is
        head = model.get_output_embeddings().weight
        head[0] = -0.5 * head[FIRST_TOKEN:].sum(0)
    model.generation_config.eos_token_id = [1, OTHER_END]
    model.save_pretrained(directory)
    return model


def _bart(name: str, directory: Path, **options: Any) -> Any:
    return bart_checkpoints.make(name, directory, seed=0, **_BART_SIZES, **options)


def _shake(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        resemble_all(model.get_output_embeddings().weight)


_MAKERS: dict[str, Callable[[Path], Any]] = {
    "t5": lambda at: _t5_like("T5", at),
    "mt5": lambda at: _t5_like(
        "MT5", at, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "bart": lambda at: _bart("Bart", at, forced_bos_token_id=FORCED_FIRST),
    "pegasus": lambda at: _bart("Pegasus", at, forced_eos_token_id=1),
    "t5gemma": _t5gemma,
    "longt5": lambda at: _t5_like(
        "LongT5",
        at,
        encoder_attention_type="transient-global",
        local_radius=5,
        global_block_size=4,
    ),
}
NAMES = tuple(_MAKERS)


@functools.cache
def of(name: str) -> Pair:
    """The pair of this name, whose compiled programs all cases share."""
    torch.manual_seed(NAMES.index(name))
    with tempfile.TemporaryDirectory() as directory:
        theirs = _MAKERS[name](Path(directory))
        return Pair(theirs, PidModel.from_pretrained(directory))
