import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.examples import Example, Subtask
from pid_jax.data.token_source import Lacking
from pid_jax.data.tokenizing import (
    Limits,
    TokenizedExamples,
    Tokenizer,
    encode_document,
    encode_prompt,
    encode_target,
    train_tokenizer,
)
from pid_jax.errors import UserError

TEXTS = [
    "[user] i need a cheap hotel in the north for 3 people.",
    "[system] what day? [user] saturday at 17:45, please.",
    "hotel-pricerange",
    "hotel-book day",
    "none",
] * 5
WIDE = Limits(document_tokens=100, prompt_tokens=100, target_tokens=100)
END = 1


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 500)


@pytest.fixture(scope="module")
def byt5():
    """One token per byte, its value plus 3; appends </s> (1); a slow tokenizer."""
    transformers = pytest.importorskip("transformers")
    return transformers.ByT5Tokenizer()


@pytest.fixture(scope="module")
def bart_like():
    """One token per letter a to z, from 10 on; <s> (0) before, </s> (2) after a document."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    letters = {letter: 10 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    model = tokenizers.models.WordLevel({"<s>": 0, "</s>": 2, **letters}, unk_token="z")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )


def bytes_of(text, *after):
    return [byte + 3 for byte in text.encode()] + list(after)


def example(document, *subtasks, id="a"):
    return Example(
        id=id,
        document=document,
        subtasks=tuple(
            Subtask(id=f"q{number}", prompt=prompt, target=target)
            for number, (prompt, target) in enumerate(subtasks)
        ),
    )


def test_documents_get_special_tokens_prompts_none_targets_the_end_token(byt5):
    assert encode_document(byt5, "ab") == [100, 101, 1]
    assert encode_prompt(byt5, "ab") == [100, 101]
    assert encode_target(byt5, "ab", 77) == [100, 101, 77]


def test_an_empty_text_has_no_tokens_but_special_ones(byt5, tokenizer, bart_like):
    for some in (byt5, tokenizer):
        assert encode_document(some, "") == [1]
        assert encode_prompt(some, "") == []
        assert encode_target(some, "", END) == [END]
    assert encode_document(bart_like, "") == [0, 2]


def test_examples_are_tokenized_text_by_text(byt5):
    examples = [
        example("one", ("p", "x"), ("pp", "")),
        example("", id="b"),
        example("three", ("p", None), ("q", "x"), id="c"),
    ]
    tokenized = TokenizedExamples(examples, byt5, WIDE, end_token_id=END)

    assert len(tokenized) == 3
    assert [each.id for each in tokenized] == ["a", "b", "c"]
    assert [each.document for each in tokenized] == [
        bytes_of("one", 1),
        [1],
        bytes_of("three", 1),
    ]
    assert tokenized[0].prompts == [bytes_of("p"), bytes_of("pp")]
    assert tokenized[0].targets == [bytes_of("x", END), [END]]
    assert tokenized[1].prompts == tokenized[1].targets == []
    assert tokenized[2].prompts == [bytes_of("p"), bytes_of("q")]
    assert tokenized[2].targets == [[], bytes_of("x", END)]
    assert tokenized[-1] == tokenized[2]
    assert tokenized[1:] == [tokenized[1], tokenized[2]]
    with pytest.raises(IndexError):
        tokenized[3]


def test_no_examples_make_an_empty_set(byt5):
    tokenized = TokenizedExamples([], byt5, WIDE, end_token_id=END)
    assert list(tokenized) == []
    assert not tokenized.truncation_report().anything_cut


def test_some_subtasks_of_an_example_can_be_selected(byt5):
    examples = [example("x", ("a", "A")), example("y", ("b", "B"), ("c", "C"), ("d", "D"), id="b")]
    tokenized = TokenizedExamples(examples, byt5, WIDE, end_token_id=END)
    selected = tokenized.select(1, np.array([2, 0]))
    assert selected.document == bytes_of("y", 1)
    assert selected.prompts == [bytes_of("d"), bytes_of("b")]
    assert selected.targets == [bytes_of("D", END), bytes_of("B", END)]


def test_subtasks_are_found_by_their_target(byt5):
    examples = [
        example("x", ("a", "none"), ("b", None)),
        example("y", id="b"),
        example("z", ("a", "north"), ("b", "none"), id="c"),
    ]
    tokenized = TokenizedExamples(examples, byt5, WIDE, end_token_id=END)
    none = encode_target(byt5, "none", END)
    assert [tokenized.targets_equal(n, none).tolist() for n in range(3)] == [
        [True, False],
        [],
        [False, True],
    ]
    assert tokenized.targets_equal(2, [12345]).tolist() == [False] * 2


def test_statistics_name_the_first_example_that_lacks_something(byt5):
    examples = [
        example("x", ("a", "none"), ("b", None)),
        example("y", id="b"),
        example("zzz", ("a", "north"), ("b", None), ("c", None), id="c"),
    ]
    statistics = TokenizedExamples(examples, byt5, WIDE, end_token_id=END).statistics
    assert statistics.without_target == Lacking(3, "a")
    assert statistics.without_subtask == Lacking(1, "b")
    assert (statistics.examples, statistics.subtasks, statistics.most_subtasks) == (3, 5, 3)
    # With the end token.
    assert (statistics.shortest_document, statistics.longest_document) == (2, 4)
    assert (statistics.longest_prompt, statistics.longest_target) == (1, 6)


def test_lengths_of_subtasks_are_those_of_their_tokens(byt5):
    examples = [example("x", ("a", "A"), ("bc", None), ("def", "DE"))]
    tokenized = TokenizedExamples(examples, byt5, WIDE, end_token_id=END)
    prompts, targets = tokenized.subtask_lengths(0, np.array([2, 1, 0]))
    assert prompts.tolist() == [3, 2, 1]
    assert targets.tolist() == [3, 0, 2]


@pytest.mark.parametrize(
    ("side", "expected"), [("right", "abcd"), ("left", "efgh")], ids=["right", "left"]
)
def test_a_document_is_cut_on_the_chosen_side_before_its_end_token(byt5, side, expected):
    limits = Limits(5, 100, 100, truncation_side=side)
    tokenized = TokenizedExamples([example("abcdefgh")], byt5, limits, end_token_id=END)
    assert tokenized[0].document == bytes_of(expected, 1)


@pytest.mark.parametrize(("side", "expected"), [("right", [10, 11]), ("left", [13, 14])])
def test_a_cut_document_has_special_tokens_at_both_ends(bart_like, side, expected):
    limits = Limits(4, 100, 100, truncation_side=side)
    tokenized = TokenizedExamples([example("abcde")], bart_like, limits, end_token_id=2)
    assert tokenized[0].document == [0, *expected, 2]


def test_prompts_and_targets_lose_their_last_tokens_and_targets_end_with_the_end_token(byt5):
    limits = Limits(100, prompt_tokens=2, target_tokens=3)
    tokenized = TokenizedExamples([example("x", ("abc", "defg"))], byt5, limits, end_token_id=END)
    assert tokenized[0].prompts == [bytes_of("ab")]
    assert tokenized[0].targets == [bytes_of("de", END)]


@given(text=st.text("abcdefgh", max_size=12), limit=st.integers(2, 12))
@settings(max_examples=50)
def test_only_what_exceeds_the_limit_is_cut(byt5, text, limit):
    limits = Limits(limit, limit, limit, truncation_side="left")
    tokenized = TokenizedExamples([example(text, (text, text))], byt5, limits, end_token_id=END)
    whole = len(text) + 1 <= limit
    assert len(tokenized[0].document) == min(len(text) + 1, limit)
    assert len(tokenized[0].targets[0]) == min(len(text) + 1, limit)
    assert len(tokenized[0].prompts[0]) == min(len(text), limit)
    report = tokenized.truncation_report()
    assert (report.documents_cut, report.targets_cut) == (int(not whole), int(not whole))
    assert report.prompts_cut == int(len(text) > limit)


def test_the_truncation_report_counts_every_document_and_subtask_once(byt5):
    limits = Limits(4, 2, 3, truncation_side="left")
    examples = [
        example("abcdef", ("ppp", "none"), ("p", "a")),
        example("ab", ("ppp", "none"), ("p", None), id="b"),
    ]
    tokenized = TokenizedExamples(examples, byt5, limits, end_token_id=END)
    for _ in range(3):  # reading again counts nothing again
        list(tokenized)
    report = tokenized.truncation_report()
    assert (report.documents_cut, report.documents, report.longest_document) == (1, 2, 7)
    assert (report.prompts_cut, report.prompts, report.longest_prompt) == (2, 4, 3)
    assert (report.targets_cut, report.targets, report.longest_target) == (2, 3, 5)
    assert report.anything_cut
    lengths = {kind: list(of) for kind, of in tokenized.lengths_before_cutting().items()}
    assert lengths == {"documents": [7, 3], "prompts": [3, 1, 3, 1], "targets": [5, 2, 5]}
    assert str(report) == (
        "cut 1 of 2 documents on the left to 4 tokens (longest 7), "
        "2 of 4 prompts to 2 tokens (longest 3), 2 of 3 targets to 3 tokens (longest 5)"
    )


def test_every_text_is_tokenized_once(byt5):
    seen = []

    def counting(texts, **options):
        seen.extend(texts)
        return byt5(texts, **options)

    class Counting:
        __call__ = staticmethod(counting)
        decode = staticmethod(byt5.decode)
        save_pretrained = staticmethod(byt5.save_pretrained)

    examples = [
        example(f"document {number}", ("area?", "none"), ("day?", "none"), id=str(number))
        for number in range(50)
    ]
    tokenized = TokenizedExamples(examples, Counting(), WIDE, end_token_id=END)
    for _ in range(2):
        list(tokenized)
    assert [seen.count(text) for text in ("area?", "day?", "none", "document 7")] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["document_tokens", "prompt_tokens", "target_tokens"])
def test_a_limit_below_one_is_a_user_error(name):
    sizes = {"document_tokens": 1, "prompt_tokens": 1, "target_tokens": 1, name: 0}
    with pytest.raises(UserError, match=f"{name} is at least 1, not 0"):
        Limits(**sizes)


def test_a_document_limit_that_leaves_no_tokens_for_text_is_a_user_error(bart_like):
    with pytest.raises(UserError, match="document_tokens is 2"):
        TokenizedExamples([example("abc")], bart_like, Limits(2, 9, 9), end_token_id=2)


# The tokenizer from scratch.


def test_special_tokens_are_those_of_t5(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_the_end_token_is_appended_only_with_special_tokens(tokenizer):
    bare = tokenizer("a cheap hotel", add_special_tokens=False)["input_ids"]
    assert tokenizer("a cheap hotel")["input_ids"] == [*bare, 1]
    assert 1 not in bare


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=200)
def test_no_text_is_lost(tokenizer, text):
    # As with every Hugging Face tokenizer, a special token's name in a text is that token.
    assume(not any(name in text for name in tokenizer.all_special_tokens))
    ids = encode_prompt(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(encode_document(tokenizer, text), skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "text",
    [
        "at 17:45 , please . ok ?",
        " two  spaces ",
        "don't",
        "line\nline\tend\n",
        "日本 é 🙂",
        "north",
    ],
)
def test_decoding_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(encode_prompt(tokenizer, text)) == text


def test_frequent_words_are_one_token_wherever_they_stand(tokenizer):
    alone = encode_prompt(tokenizer, "north")
    assert len(alone) == 1
    assert alone[0] in encode_prompt(tokenizer, "in the north for 3 people.")
    assert len(encode_prompt(tokenizer, "i need a cheap hotel in the north")) == 8


def test_training_is_deterministic(tokenizer):
    # In another process, hash tables have other seeds.
    program = (
        "from pid_jax.data.tokenizing import train_tokenizer\n"
        f"print(train_tokenizer({TEXTS!r}, 500).backend_tokenizer.to_str())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.rstrip("\n") == tokenizer.backend_tokenizer.to_str()
    assert train_tokenizer(TEXTS, 500).get_vocab() == tokenizer.get_vocab()


def test_the_vocabulary_has_at_most_the_requested_size():
    # All pairs below occur often, so only the limit stops merging.
    assert len(train_tokenizer(TEXTS, 300)) == 300
    assert len(train_tokenizer(TEXTS, 100_000)) < 600


def test_a_vocabulary_smaller_than_the_bytes_is_a_user_error():
    with pytest.raises(UserError, match=r"258 tokens is too small: .* take 259"):
        train_tokenizer(TEXTS, 258)


@pytest.mark.parametrize("config", [None, '{"model_type": "t5"}', '{"model_type": "mt5"}'])
def test_an_exported_tokenizer_loads_in_transformers_and_encodes_alike(tokenizer, tmp_path, config):
    transformers = pytest.importorskip("transformers")
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    if config:
        (tmp_path / "config.json").write_text(config)
    texts = [*TEXTS[:5], "", " unseen: 日本 ", "</s>"]
    for load in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        loaded = load.from_pretrained(Path(tmp_path))
        assert len(loaded) == len(tokenizer)
        assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
        for text in texts:
            assert dict(loaded(text)) == dict(tokenizer(text))
            assert set(loaded(text)) == {"input_ids", "attention_mask"}
            ids = encode_prompt(tokenizer, text)
            assert encode_prompt(loaded, text) == ids
            assert loaded.decode(ids) == tokenizer.decode(ids)


def test_targets_that_do_not_come_back_are_counted_by_subtask():
    """The vocabulary lacks `{`, `<` and the newline; lists of allowed texts need none of it."""
    transformers = pytest.importorskip("transformers")
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁cheap", "▁north", "▁price", "▁5", "▁one", "▁two"]
    t5 = transformers.T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])
    t5.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    targets = ("cheap <sep> north", "one\ntwo", "price < 5 { cheap }", "one two", "one\ntwo")
    examples = [
        example("cheap", *(("north", target) for target in targets), ("two", None)),
        Example("b", "one", (Subtask("q", "two", "one\ntwo", ("one\ntwo", "two")),)),
    ]
    tokenized = TokenizedExamples(
        examples, t5, WIDE, end_token_id=END, text_of=Detokenizer(t5, [0, 1]).text
    )
    report = tokenized.target_report()
    assert (report.targets, report.changed) == (5, 3)
    assert str(report) == (
        "3 of 5 targets change when encoded and decoded, the first is "
        r"'one\ntwo' → 'one two'"
    )
    unchanged = TokenizedExamples(
        [example("a", ("b", "one\ntwo { <"))],
        train_tokenizer(TEXTS, 500),
        WIDE,
        end_token_id=END,
        text_of=Detokenizer(train_tokenizer(TEXTS, 500), [0, 1]).text,
    )
    assert unchanged.target_report().changed == 0
