"""Stop sequences against a search in what the tokenizer decodes, token after token."""

import random
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.tokenizing import train_tokenizer
from pid_jax.decoding.stop_sequences import StopAutomaton, compile_stops, cut, token_bytes
from pid_jax.errors import UserError

SPECIAL = ["<pad>", "</s>", "<unk>"]
PIECES = ["▁", "▁a", "a", "b", "ab", "▁b", "c", ".", "▁ba", "▁▁", "c▁a", "bc", "é", "<0x0A>"]
SEPARATED = ["a <sep> b", "b <usr> b a <sep>", "<sep> b", "ab <sep><usr> b"] * 2
TEXTS = ["a b  ab abc\n", " ba é\n\nabab c. a", "a", "", "日本 ab", "  bc  "]


def byte_level() -> Any:
    corpus = ["a b ab abc é 日本 c.\nbc", "aba ab\n\nabc a  b"]
    return train_tokenizer(corpus * 3, 290)


def byt5() -> Any:
    return ByT5Tokenizer()


def t5() -> Any:
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(SPECIAL + PIECES)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=2)


def byte_fallback(strip: bool) -> Any:
    """Gemma's kind of decoder, or Llama's, which swallows the first space."""
    pieces = [*SPECIAL, *PIECES, *(f"<0x{byte:02X}>" for byte in range(256) if byte != 10)]
    tokenizer = FastTokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] * strip)])
    tokenizer.add_tokens([AddedToken("<ab>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "byte_level": byte_level,
    "byt5": byt5,
    "t5": t5,
    "gemma": lambda: byte_fallback(strip=False),
    "llama": lambda: byte_fallback(strip=True),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request) -> Any:
    return TOKENIZERS[request.param]()


def with_separators(make: Any) -> Any:
    """One that is marked as special and one that is not, added by the user."""
    tokenizer = make()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<sep>"]}, replace_extra_special_tokens=False
    )
    tokenizer.add_tokens(["<usr>"])
    return tokenizer


def decode(tokenizer: Any, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def sequences(tokenizer: Any) -> list[list[int]]:
    """Tokens in any order, special ones too, whose bytes are always whole characters."""
    chosen = random.Random(0)
    # Twice, for the spaces that the start swallows.
    texts = {id: decode(tokenizer, [id, id]) for id in range(len(tokenizer))}
    tokens = [0, 1, *(id for id, text in texts.items() if text and set(text) <= set("abc. \né"))]
    made = [chosen.choices(tokens, k=chosen.randint(1, 12)) for _ in range(200)]
    return made + [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]


def stops_after(automaton: StopAutomaton, tokens: list[int]) -> int | None:
    """The number of tokens after which the automaton stops."""
    table = np.asarray(automaton.next_state)
    state = 0
    for i, token in enumerate(tokens):
        state = table[state, token]
        if automaton.stopped(jnp.asarray(state)):
            return i + 1
    return None


def first_that(tokens: list[int], holds: Any) -> int | None:
    return next((i for i in range(1, len(tokens) + 1) if holds(tokens[:i])), None)


def test_bytes_of_tokens_make_the_decoded_text(tokenizer):
    first, following, *_ = token_bytes(Detokenizer(tokenizer, ()), len(tokenizer) + 3)
    assert len(first) == len(following) == len(tokenizer) + 3
    special = set(tokenizer.all_special_ids)
    for tokens in sequences(tokenizer):
        heard = [token for token in tokens if token not in special]
        parts = [first[token] for token in heard[:1]] + [following[token] for token in heard[1:]]
        assert b"".join(parts).decode() == decode(tokenizer, tokens)


def test_control_tokens_and_ids_beyond_the_tokenizer_add_nothing(tokenizer):
    first, following, *_ = token_bytes(Detokenizer(tokenizer, ()), len(tokenizer) + 3)
    for silent in (0, 1, 2, *range(len(tokenizer), len(tokenizer) + 3)):
        assert first[silent] == following[silent] == b""


def test_parts_of_characters_stay_bytes():
    tokenizer = byte_fallback(strip=False)
    _, following, *_ = token_bytes(Detokenizer(tokenizer, ()), len(tokenizer))
    assert following[tokenizer.convert_tokens_to_ids("<0xE6>")] == b"\xe6"
    _, following, *_ = token_bytes(Detokenizer(byt5(), ()), 384)
    assert following[3 + 0xE6] == b"\xe6"


@pytest.mark.parametrize(
    "stops", [["ab"], [" a", "\n"], ["aba", "b c", "c."], ["a b", " "], ["abab", "bab", "é"]]
)
def test_outputs_stop_with_the_token_that_completes_a_string(tokenizer, stops):
    vocab_size = len(tokenizer)
    automaton = compile_stops(
        stops, token_bytes(Detokenizer(tokenizer, ()), vocab_size), vocab_size
    )
    found = 0
    for tokens in sequences(tokenizer):
        expected = first_that(
            tokens, lambda part: any(stop in decode(tokenizer, part) for stop in stops)
        )
        assert stops_after(automaton, tokens) == expected
        found += expected is not None
    assert found > 3


@pytest.mark.parametrize("stops", [["<sep>"], ["<usr>"], ["a <sep>"], ["p> b"], ["sep", "> <u"]])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_added_tokens_stop_as_the_text_that_they_are(name, stops):
    tokenizer = with_separators(TOKENIZERS[name])
    detokenizer = Detokenizer(tokenizer, ())
    vocab_size = len(tokenizer)
    automaton = compile_stops(stops, token_bytes(detokenizer, vocab_size), vocab_size)
    added = [id for id in range(vocab_size) if detokenizer.text([id]).strip() in ("<sep>", "<usr>")]
    assert len(added) == 2
    chosen = random.Random(1)
    found = 0
    made = sequences(tokenizer)
    made += [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SEPARATED]
    for tokens in made:
        for token in added:
            tokens.insert(chosen.randint(0, len(tokens)), token)
        if "\N{REPLACEMENT CHARACTER}" in detokenizer.text(tokens):
            continue  # inside a character
        expected = first_that(
            tokens, lambda part: any(stop in detokenizer.text(part) for stop in stops)
        )
        assert stops_after(automaton, tokens) == expected
        found += expected is not None
    # These two do not encode the space before the token.
    assert found > 1 or (stops == ["a <sep>"] and name in ("gemma", "llama"))


@pytest.mark.parametrize("name", ["byt5", "gemma", "llama"])
def test_characters_of_several_tokens_are_found(name):
    """Each of the three bytes of 日 and of 本 is a token of its own."""
    tokenizer = TOKENIZERS[name]()
    if name == "byt5":
        ids = [3 + byte for byte in "日本".encode()]
    else:
        ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "日本".encode()]
    assert decode(tokenizer, ids) == "日本"
    automaton = compile_stops(
        ["本"], token_bytes(Detokenizer(tokenizer, ()), len(tokenizer)), len(tokenizer)
    )
    assert stops_after(automaton, ids) == 6
    assert stops_after(automaton, ids[:5]) is None


SMALL = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(SMALL, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=20))
def test_token_sequences_need_no_tokenizer(stops, tokens):
    automaton = compile_stops(stops, None, 4)
    expected = first_that(tokens, lambda part: any(part[-len(stop) :] == stop for stop in stops))
    assert stops_after(automaton, tokens) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 9), max_size=20),
)
def test_strings_and_token_sequences_may_be_mixed(strings, lists, tokens):
    tokenizer = t5()
    stops = [*lists, *strings]
    automaton = compile_stops(stops, token_bytes(Detokenizer(tokenizer, ()), 32), 32)
    expected = first_that(
        tokens,
        lambda part: (
            any(part[-len(stop) :] == stop for stop in lists)
            or any(stop in decode(tokenizer, part) for stop in strings)
        ),
    )
    assert stops_after(automaton, tokens) == expected


def test_the_automaton_runs_over_rows_under_jit_and_vmap():
    automaton = compile_stops([[1, 2], [3]], None, 4)
    tokens = jnp.array([[[1, 2, 0], [1, 0, 2]], [[0, 1, 3], [1, 1, 2]]])

    def run(automaton: StopAutomaton, tokens: jax.Array) -> jax.Array:
        state = jnp.zeros(tokens.shape[:-1], jnp.int32)
        for i in range(tokens.shape[-1]):
            state = automaton.after(state, tokens[..., i])
        return automaton.stopped(state)

    expected = [[True, False], [True, True]]
    np.testing.assert_array_equal(jax.jit(run)(automaton, tokens), expected)
    over_prompts = jax.vmap(run, in_axes=(None, 1), out_axes=1)
    np.testing.assert_array_equal(over_prompts(automaton, tokens), expected)


def test_stops_of_similar_lengths_make_the_same_shape():
    one = compile_stops([list(range(i, i + 20)) for i in range(2)], None, 64)
    other = compile_stops([list(range(i, i + 20)) for i in (0, 30)], None, 64)
    assert one.next_state.shape == other.next_state.shape
    short = compile_stops([[5]], None, 64).next_state.shape
    assert short == compile_stops([[7, 8], [5, 5, 5]], None, 64).next_state.shape == (8, 64)


def test_the_automaton_of_a_whole_vocabulary_has_few_states():
    chosen = random.Random(0)
    pieces = {
        chosen.choice(["▁", ""]) + "".join(chosen.choices(string.ascii_letters, k=6)) + str(i)
        for i in range(32025)
    }
    vocabulary = [(piece, -float(i)) for i, piece in enumerate([*SPECIAL, *sorted(pieces)])]
    tokenizer = T5Tokenizer(vocab=vocabulary)
    tokens = token_bytes(Detokenizer(tokenizer, ()), 32128)
    stops = compile_stops(["\n\n", "User:", " the end.", "###", "Question:"], tokens, 32128)
    states, columns = stops.next_state.shape
    assert columns == 32128
    assert states <= 64


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        (["", "a"], r"stop\[0\] is empty"),
        (["a", []], r"stop\[1\] is empty"),
        ([[3, 4]], r"stop\[0\] has the token id 4, but ids go from 0 to 3"),
        ([[3], "x"], r"stop\[1\] is text, but the model has no tokenizer"),
    ],
)
def test_stops_that_make_no_sense_are_refused(stops, message):
    tokens = None if "x" in stops else token_bytes(Detokenizer(t5(), ()), 4)
    with pytest.raises(UserError, match=message):
        compile_stops(stops, tokens, 4)


def test_a_tokenizer_that_joins_words_is_refused():
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, "a", "##b"])}
    word_piece = FastTokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    word_piece.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_piece, unk_token="<unk>")
    with pytest.raises(UserError, match="give stop sequences as token ids"):
        token_bytes(Detokenizer(tokenizer, ()), 5)


@pytest.mark.parametrize(
    ("text", "stops", "before"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("one", ["\n"], "one"),
        ("one", [], "one"),
        ("one two", ["two", "one"], ""),
        ("xxabc", ["abc", "b"], "xxa"),  # b is complete before abc is
        ("xxabc", ["c", "abc"], "xx"),
        ("\none", ["\n"], ""),
    ],
)
def test_text_is_cut_before_the_stop_that_is_complete_first(text, stops, before):
    assert cut(text, stops) == before
