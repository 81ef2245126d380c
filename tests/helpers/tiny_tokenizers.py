"""Tokenizers of every kind with a few tokens, and a configuration for each."""

import itertools
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from pid_jax import models as families
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.tokenizing import train_tokenizer
from pid_jax.models.protocol import control_token_ids
from tests.helpers.tiny_t5 import TINY

PAD, END, UNKNOWN, END_OF_TURN = 0, 1, 2, 3
SPECIAL = ["<pad>", "</s>", "<unk>", "<turn>"]
PIECES = ["▁", "▁a", "a", "b", "ab", "▁b", ".", "▁ba", "▁▁", "b▁a", "é", "▁3", "1", "12"]
JSON_PIECES = [*'{}[]":,-.\\/ntrueflsabcdxyz0123456789', "▁{", '▁"', '":', "▁true", "null", ',▁"']


def t5(pieces: Sequence[str] = PIECES) -> Any:
    vocabulary = [(piece, -float(i)) for i, piece in enumerate([*SPECIAL, *dict.fromkeys(pieces)])]
    return T5Tokenizer(vocab=vocabulary, extra_ids=2)


def byte_fallback(strip: bool) -> Any:
    """Gemma's kind of decoder, or Llama's, which drops the first space."""
    pieces = [*SPECIAL, *PIECES, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = FastTokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] * strip)])
    tokenizer.add_special_tokens([AddedToken("<turn>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level() -> Any:
    """BART's kind."""
    corpus = ["a b ab abc é 日本 .\nb", "aba ab\n\nab a  b", '{"a": true, "b": [1, 23]}']
    return train_tokenizer(corpus * 3, 300)


TOKENIZERS = {
    "t5": t5,
    "t5_json": lambda: t5(JSON_PIECES),
    "gemma": lambda: byte_fallback(strip=False),
    "llama": lambda: byte_fallback(strip=True),
    "byte_level": byte_level,
    "byt5": ByT5Tokenizer,
}
SPELLS_ANYTHING = ["gemma", "llama", "byte_level", "byt5"]


def config_of(tokenizer: Any, **others: Any) -> Any:
    """A T5 of a few more tokens than the tokenizer has."""
    sizes = {"vocab_size": len(tokenizer) + 3, "pad_token_id": PAD, "decoder_start_token_id": PAD}
    return families.build({**TINY, "eos_token_id": END, **sizes, **others}).config


def spell(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


SMALL = t5()
SMALL_CONFIG = config_of(SMALL)
SMALL_DETOKENIZER = Detokenizer(SMALL, control_token_ids(SMALL_CONFIG))
SEQUENCES = {
    tokens: SMALL_DETOKENIZER.text(tokens)
    for length in range(4)
    for tokens in itertools.product(range(END_OF_TURN, len(SPECIAL) + len(PIECES)), repeat=length)
}
