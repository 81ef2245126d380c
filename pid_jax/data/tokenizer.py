"""Tokenizers: the interface that the project relies on, special tokens, training a new one."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from pid_jax.errors import UserError


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer, fast or slow, that this project relies on."""

    def __call__(self, text: Any, **options: Any) -> Any: ...

    def decode(self, token_ids: Any, **options: Any) -> Any: ...

    def save_pretrained(self, save_directory: Any, **options: Any) -> Any: ...


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids with the tokenizer's special tokens (T5 appends </s>). Never truncates."""
    return next(encode_texts(tokenizer, [text], special_tokens=True))


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids without special tokens. Never truncates."""
    return next(encode_texts(tokenizer, [text], special_tokens=False))


def encode_target(tokenizer: Tokenizer, text: str, end_token_id: int) -> list[int]:
    """Token ids without special tokens, then the end token. Never truncates."""
    return [*next(encode_texts(tokenizer, [text], special_tokens=False)), end_token_id]


def leading_tokens(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text (BART: `<s>`, T5: none)."""
    before, _ = special_tokens_around(tokenizer)
    return encode_document(tokenizer, "a")[:before]


def encode_texts(
    tokenizer: Tokenizer, texts: Iterable[str], *, special_tokens: bool
) -> Iterator[list[int]]:
    """Token ids of each text. Never truncates.

    Encodes 1,024 texts at a time: a fast tokenizer spreads a portion over the cores.
    """
    texts = iter(texts)
    while portion := list(islice(texts, _TEXTS_AT_ONCE)):
        yield from tokenizer(
            portion,
            add_special_tokens=special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long texts, which are truncated and counted later
        )["input_ids"]


def special_tokens_around(tokenizer: Tokenizer) -> tuple[int, int]:
    """The numbers of special tokens that the tokenizer puts before and after a text.

    Raises ValueError for a tokenizer that encodes a text differently with special tokens.
    """
    bare = encode_prompt(tokenizer, "a")
    whole = encode_document(tokenizer, "a")
    for before in range(len(whole) - len(bare) + 1):
        if whole[before : before + len(bare)] == bare:
            return before, len(whole) - len(bare) - before
    raise ValueError(
        f"the tokenizer encodes 'a' as {bare} without special tokens but as {whole} with them: "
        "cannot tell which of a document's tokens must survive truncation"
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Tokenizer:
    """Trains a fast tokenizer (transformers' PreTrainedTokenizerFast) on these texts.

    Byte-pair encoding over UTF-8 bytes, as in GPT-2: it encodes every text, and decoding returns
    exactly the encoded text, including white space. Only the name of a special token becomes that
    token, as in every Hugging Face tokenizer. A space is prepended to every text, so a word has
    the same tokens at every position and the model can copy a value by copying its tokens. Special
    tokens are those of T5: <pad> 0, </s> 1, <unk> 2 (never produced), with </s> appended to a
    document.

    A pair of tokens is merged only if it occurs `min_frequency` times, so small corpora may
    yield fewer than `vocab_size` tokens. The same texts in the same order give the same
    tokenizer. Raises UserError if `vocab_size` is below the number of bytes and special tokens.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special_tokens = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(special_tokens) + len(alphabet)
    if vocab_size < smallest:
        raise UserError(
            f"a vocabulary of {vocab_size} tokens is too small: special tokens and bytes take "
            f"{smallest}, and whole words need more"
        )
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=special_tokens,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        # T5's forward pass has no argument token_type_ids.
        model_input_names=["input_ids", "attention_mask"],
    )


_TEXTS_AT_ONCE = 1024
