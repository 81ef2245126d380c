"""Text that a tokenizer can represent comes back exactly, added tokens too."""

from typing import Any

import pytest
from transformers import ByT5Tokenizer, MBart50Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.tokenizing import train_tokenizer

PIECES = ["▁", "▁cheap", "▁north", "▁price", "▁5", "▁a", "a", "▁.", "."]


def trained() -> Any:
    return train_tokenizer(["cheap north price 5 a .\n{ } <"] * 3, 300)


def sentencepiece() -> Any:
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(["<pad>", "</s>", "<unk>", *PIECES])]
    return T5Tokenizer(vocab=vocabulary, extra_ids=2)


MADE = {"trained": trained, "sentencepiece": sentencepiece, "bytes": ByT5Tokenizer}
SEPARATORS = {
    "special": lambda tokenizer: tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<sep>"]}, replace_extra_special_tokens=False
    ),
    "named": lambda tokenizer: tokenizer.add_special_tokens({"sep_token": "<sep>"}),
    "plain": lambda tokenizer: tokenizer.add_tokens(["<sep>"]),
}


def back(tokenizer: Any, text: str) -> str:
    detokenizer = Detokenizer(tokenizer, ())
    return detokenizer.text(tokenizer(text, add_special_tokens=True)["input_ids"])


@pytest.mark.parametrize("add", SEPARATORS)
@pytest.mark.parametrize("make", MADE)
def test_a_separator_that_a_user_added_is_text(make: str, add: str) -> None:
    tokenizer = MADE[make]()
    SEPARATORS[add](tokenizer)
    for text in ("cheap <sep> north", "<sep> north", "cheap <sep>", "<sep>", "a <sep> a <sep> 5"):
        assert back(tokenizer, text) == text


@pytest.mark.parametrize("make", ["trained", "bytes"])
@pytest.mark.parametrize(
    "text",
    [" a", "a ", "  a  \n", "price < 5 { cheap }", "one\ntwo", "a , b . isn 't", "日本 é 🏨", ""],
)
def test_tokenizers_of_bytes_return_every_space_and_sign(make: str, text: str) -> None:
    assert back(MADE[make](), text) == text


def test_sentinels_are_text() -> None:
    for make in (sentencepiece, ByT5Tokenizer):
        assert back(make(), "<extra_id_0> cheap <extra_id_1>") == "<extra_id_0> cheap <extra_id_1>"


def test_control_tokens_are_not() -> None:
    detokenizer = Detokenizer(sentencepiece(), [7])
    assert detokenizer.text([0, 4, 2, 7, 5, 1]) == "cheap north"


def test_language_codes_are_not() -> None:
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = MBart50Tokenizer(
        vocab=[*vocabulary, *((piece, -1.0) for piece in PIECES)], src_lang="en_XX"
    )
    codes = tokenizer.convert_tokens_to_ids(["en_XX", "ro_RO"])
    cheap, north = tokenizer.convert_tokens_to_ids(["▁cheap", "▁north"])
    text = Detokenizer(tokenizer, ()).text([codes[0], cheap, codes[1], north])
    assert text == "cheap north"


def test_spaces_stay_where_the_tokenizer_would_clean_them_up() -> None:
    inner = trained()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner.backend_tokenizer,
        eos_token="</s>",
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )
    assert back(tokenizer, "cheap . north") == "cheap . north"
