"""Texts of all kinds through every kind of tokenizer: streamed, stopped, limited to lists.

With random weights outputs are nonsense, full of rare tokens and halves of characters, which is
what a reader of outputs must stand.
"""

import random
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from pid_jax import models as families
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.tokenizing import train_tokenizer
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers.tiny_t5 import TINY

CORPUS = [
    "price < 5 { cheap }",
    "one\ntwo\r\n\tthree",
    "日本語のテキスト",
    "Ελλάδα и Россия",
    "👩‍👩‍👧 🏨 é é",
    "שלום عربي",
    "[user] a hotel in the north . isn 't it",
    "",
    " ",
    "\n",
    "  two  spaces  ",
    "</s>",
    "a </s> b <pad> c <unk>",
    "<sep> cheap <sep> north <sep>",
    "cheap<sep>north",
    "x" * 60,
    "\u200b\ufeff\x00",
]
WORDS = ["a", "the", "cheap", "north", "price", "5", "one", "two", "hotel", "in"]
PIECES = ["▁", *(f"▁{word}" for word in WORDS), *"abcdehnorst."]


def trained() -> Any:
    return train_tokenizer(CORPUS * 3, 420)


def unigram() -> Any:
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(["<pad>", "</s>", "<unk>", *PIECES])]
    return T5Tokenizer(vocab=vocabulary, extra_ids=2)


def word_piece() -> Any:
    names = ["<pad>", "</s>", "<unk>", *WORDS]
    names += [f"##{letter}" for letter in "abcdenort"]
    inner = FastTokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "byte-level BPE": trained,
    "unigram": unigram,
    "bytes": ByT5Tokenizer,
    "WordPiece": word_piece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request: pytest.FixtureRequest) -> PidModel:
    """Separators added, as a user would; weights that make outputs differ."""
    tokenizer = TOKENIZERS[request.param]()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<sep>"]}, replace_extra_special_tokens=False
    )
    size = len(tokenizer)
    random = np.random.default_rng(5)
    module = families.build(TINY | {"vocab_size": size, "tie_word_embeddings": False})
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape).astype(np.float32),
        families.init_params(module, jax.random.key(1)),
    )
    return PidModel(module, params, tokenizer)


def separator(model: PidModel) -> int:
    token: int = model.tokenizer.convert_tokens_to_ids("<sep>")
    return token


def likely_separator(model: PidModel) -> PidModel:
    """The same, but `<sep>` and the most frequent token of outputs are exchanged."""
    [row] = model.generate([CORPUS[0]], [["a", "north", "the price"]], max_new_tokens=8)
    often = Counter(token for answer in row for token in answer.tokens).most_common(1)[0][0]
    kernel = model.params["lm_head"]["kernel"]
    exchanged = np.array([often, separator(model)])
    kernel = kernel.at[:, exchanged].set(kernel[:, exchanged[::-1]])
    return PidModel(model.model, {**model.params, "lm_head": {"kernel": kernel}}, model.tokenizer)


def finds_texts(model: PidModel) -> bool:
    """WordPiece joins tokens by rules of its own: stops must be token ids."""
    return "##a" not in model.tokenizer.get_vocab()


def test_a_stop_text_that_is_a_token_stops_as_its_id_does(model: PidModel) -> None:
    often = likely_separator(model)
    documents, prompts = CORPUS[:4], [["a", "north", "the price"]] * 4
    free = often.generate(documents, prompts, max_new_tokens=8)
    by_id = often.generate(documents, prompts, max_new_tokens=8, stop=[[separator(model)]])
    stopped = 0
    if not finds_texts(model):
        with pytest.raises(UserError, match="give stop sequences as token ids"):
            often.generate(documents, prompts, max_new_tokens=8, stop=["<sep>"])
        return
    by_text = often.generate(documents, prompts, max_new_tokens=8, stop=["<sep>"])
    for i, row in enumerate(by_id):
        for j, expected in enumerate(row):
            found = by_text[i][j]
            assert (found.text or "").rstrip() == (expected.text or "").rstrip()
            assert found.score == pytest.approx(expected.score, abs=1e-4)
            assert found.finish_reason == expected.finish_reason
            stopped += separator(model) in free[i][j].tokens
    assert stopped


def calls(number: int) -> list[tuple[int, dict[str, Any]]]:
    """Seeded; the shapes are few, so that few programs are compiled."""
    chosen = random.Random(7)
    made = []
    for seed in range(number):
        options: dict[str, Any] = {"max_new_tokens": 8}
        kind = chosen.choice(["greedy", "sampled", "drafts"])
        if kind == "sampled":
            options |= {"do_sample": True, "temperature": 1.5, "seed": seed}
        if kind == "drafts":
            options |= {"draft_tokens": 2}
        if chosen.random() < 0.5:
            options["logprobs"] = 2
        made.append((seed, options))
    return made


@pytest.mark.parametrize(("seed", "options"), calls(3), ids=str)
def test_streams_grow_into_what_is_generated(
    model: PidModel, seed: int, options: dict[str, Any]
) -> None:
    check_call(model, seed, options)


@pytest.mark.slow
def test_streams_grow_into_what_is_generated_in_many_calls(model: PidModel) -> None:
    for seed, options in calls(8)[5:]:
        check_call(model, seed, options)


def check_call(model: PidModel, seed: int, options: dict[str, Any]) -> None:
    """One random call: generated, streamed, and each text against its tokens."""
    chosen = random.Random(seed)
    documents = chosen.choices(CORPUS, k=2)
    prompts = [chosen.choices(CORPUS, k=chosen.randint(0, 3)) for _ in documents]
    tokens = chosen.randrange(3, len(model.tokenizer))
    allowed = None
    if chosen.random() < 0.5:
        lists = [["cheap", "north", "5 {"], ["<sep> a"], None]
        allowed = [[chosen.choice(lists) for _ in row] for row in prompts]
    options = {
        **options,
        "stop": [[tokens], chosen.choice([[tokens, 4], [3, 3]])],
        "allowed": allowed,
    }
    texts = chosen.choice([[], ["\n"], ["e", " th"], ["\ufffd"], ["<sep>", "日"]])
    if not finds_texts(model):
        texts = []
    options["stop"] += texts
    answers = model.generate(documents, prompts, **options)
    assert [len(row) for row in answers] == [len(row) for row in prompts]
    last: dict[tuple[int, int], Any] = {}
    grown: dict[tuple[int, int], list[str]] = {}
    for partial in model.stream(documents, prompts, every=chosen.choice([1, 3]), **options):
        place = partial.document, partial.prompt
        assert place not in last or not last[place].done
        last[place] = partial
        grown.setdefault(place, []).append(partial.generation.text or "")
        if not partial.done:
            assert partial.generation.finish_reason is None
    detokenizer = Detokenizer(model.tokenizer, [0, 1])
    for i, row in enumerate(answers):
        for j, answer in enumerate(row):
            streamed = last[i, j].generation
            assert last[i, j].done
            assert (streamed.text, streamed.tokens) == (answer.text, answer.tokens)
            assert streamed.finish_reason == answer.finish_reason
            for text in grown[i, j]:
                assert (answer.text or "").startswith(text)
            limited = allowed is not None and allowed[i][j] is not None
            if limited:
                assert answer.text in allowed[i][j]
                assert answer.finish_reason == "stop"
            else:
                assert detokenizer.text(answer.tokens).startswith(answer.text)
                assert not any(stop in (answer.text or "") for stop in texts)
                assert tokens not in answer.tokens
                assert answer.finish_reason == "stop" or len(answer.tokens) == 8
