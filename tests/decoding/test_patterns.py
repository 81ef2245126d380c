"""Texts of random walks through the automata, judged by Python's `re` and by `jsonschema`."""

import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from pid_jax import models as families
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.tokenizing import train_tokenizer
from pid_jax.decoding import patterns, token_automata, transitions
from pid_jax.decoding.patterns import JsonSchema, Regex, compile_patterns
from pid_jax.decoding.token_automata import (
    DEAD_END,
    UNCONSTRAINED,
    TokenAutomaton,
    after,
    allowed,
    shortest,
)
from pid_jax.errors import UserError
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


STEP = jax.jit(lambda automaton, state, left: allowed(automaton, state, left))
AFTER = jax.jit(after)


def walk(
    automaton: TokenAutomaton, start: int, limit: int, seed: int = 0, rows: int = 24
) -> list[list[int]]:
    """Outputs of allowed tokens that random chooses, each at most `limit` long."""
    chosen = random.Random(seed)
    state, outputs, ended = np.full(rows, start, np.int32), [[] for _ in range(rows)], set()
    for step in range(limit):
        mask = np.asarray(STEP(automaton, state, limit - step))
        tokens = np.full(rows, END, np.int32)
        for row in set(range(rows)) - ended:
            options = np.flatnonzero(mask[row]).tolist()
            assert options, "no token is allowed"
            # Ends are rare among many tokens, and outputs of all lengths are wanted.
            ends = END in options and chosen.random() < 0.3
            tokens[row] = END if ends else chosen.choice(options)
            if tokens[row] == END:
                ended.add(row)
            else:
                outputs[row].append(int(tokens[row]))
        state = np.asarray(AFTER(automaton, state, tokens))
    return outputs


def accepts(automaton: TokenAutomaton, start: int, tokens: Sequence[int]) -> bool:
    state = start
    for token in tokens:
        state = automaton.next_state[state, automaton.token_class[token]]
    return bool(automaton.accepting[state])


def spell(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


@pytest.mark.parametrize(
    "pattern",
    [
        "a(b|ba)*",
        "(ab|a b|b)+\\.?",
        "a|ab",
        "a*?b?",
        "",
        "[ab ]{2,6}",
        ".*",
        "^a|ab$",
        "(?i)^AB?$",
        "(?:a(?:b(?:a|ab)?)?)?b",
        "[^b]{1,4}",
        "\\s?[\\]a^$]+",
        "(?P<first>a|b) ?(?P<second>b)",
    ],
)
def test_the_text_of_every_output_matches(tokenizer, pattern):
    config = config_of(tokenizer)
    detokenizer = Detokenizer(tokenizer, control_token_ids(config))
    automaton, [start] = compile_patterns([Regex(pattern)], tokenizer, config)
    texts = set()
    for limit in shortest(automaton, start), 3, 9:
        limit = max(limit, shortest(automaton, start))
        for tokens in walk(automaton, start, limit, seed=limit):
            texts.add(detokenizer.text(tokens))
            assert re.fullmatch(pattern, detokenizer.text(tokens)), tokens
    assert len(texts) > 1 or pattern == ""


@pytest.mark.parametrize("name", SPELLS_ANYTHING)
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("日本?[é-ü]", "日é"),
        ("[^a-z]+", "Ω 日\n"),
        ("[0-9]{4}-[0-9]{2}", "2024-11"),
        ("\\p{Greek}+", "Ωμ"),
        ("(?s).{3}", "\n日a"),
        ("\\\\|\\$|\\^", "$"),
    ],
)
def test_characters_that_no_token_stands_for_come_from_bytes(name, pattern, text):
    tokenizer = TOKENIZERS[name]()
    config = config_of(tokenizer)
    detokenizer = Detokenizer(tokenizer, control_token_ids(config))
    automaton, [start] = compile_patterns([Regex(pattern)], tokenizer, config)
    names = {tokenizer.convert_ids_to_tokens(id): id for id in range(len(tokenizer))}
    if name in ("gemma", "llama"):
        tokens = [names[f"<0x{byte:02X}>"] for byte in text.encode()]
    else:
        tokens = spell(tokenizer, text)
        # A tokenizer that encodes a space before the text drops it when it decodes.
        assert detokenizer.text(tokens) == text
    assert accepts(automaton, start, tokens)
    assert not accepts(automaton, start, [*tokens, tokens[0]]) or pattern == "[^a-z]+"
    for output in walk(automaton, start, 20):
        assert "\N{REPLACEMENT CHARACTER}" not in detokenizer.text(output)
        if "Greek" not in pattern:
            assert re.fullmatch(pattern, detokenizer.text(output))


def regexes() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "b", " ", "é", "\\.", "[ab]", "[^a]", ".", "1", "\\d", ""])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,2}", "{2,}"])).map(
                lambda pair: f"(?:{pair[0]}){pair[1]}"
            ),
        ),
        max_leaves=6,
    )


SMALL = t5()
SMALL_CONFIG = config_of(SMALL)
SMALL_DETOKENIZER = Detokenizer(SMALL, control_token_ids(SMALL_CONFIG))
SEQUENCES = {
    tokens: SMALL_DETOKENIZER.text(tokens)
    for length in range(4)
    for tokens in itertools.product(range(END_OF_TURN, len(SPECIAL) + len(PIECES)), repeat=length)
}


@settings(max_examples=60, deadline=None)
@given(regexes())
def test_outputs_are_accepted_exactly_where_python_matches_their_text(pattern):
    matching = {
        tokens for tokens, text in SEQUENCES.items() if re.fullmatch(pattern, text) is not None
    }
    try:
        automaton, [start] = compile_patterns([Regex(pattern)], SMALL, SMALL_CONFIG)
    except UserError:
        assert not matching
        return
    assert {tokens for tokens in SEQUENCES if accepts(automaton, start, tokens)} == matching
    if matching:
        assert shortest(automaton, start) == min(map(len, matching))
    for limit in range(shortest(automaton, start), 6):
        for tokens in walk(automaton, start, limit, rows=6):
            assert re.fullmatch(pattern, SMALL_DETOKENIZER.text(tokens))


def test_tokens_that_could_not_finish_in_time_are_not_allowed():
    automaton, [start] = compile_patterns([Regex("a|b(?:ab){3}")], SMALL, SMALL_CONFIG)
    tokens = {piece: len(SPECIAL) + i for i, piece in enumerate(PIECES)}

    def pieces(left: int | None) -> set[str]:
        mask = np.asarray(allowed(automaton, jnp.int32(start), left))
        return {piece for piece, token in tokens.items() if mask[token]}

    assert shortest(automaton, start) == 1
    # T5's decoder drops every space of the first token.
    whole = {"a", "▁a", "b", "▁b", "▁", "▁▁", "▁ba", "b▁a"}
    assert pieces(None) == pieces(5) == whole
    # b ab ab ab are four tokens, and so are ▁ba b ab ab.
    assert pieces(4) == whole
    assert pieces(3) == {"a", "▁a", "▁", "▁▁"}
    assert pieces(1) == {"a", "▁a"}
    assert pieces(0) == set()


def test_end_tokens_are_allowed_exactly_where_the_text_is_a_whole_match():
    config = config_of(SMALL, eos_token_id=[END, END_OF_TURN])
    automaton, [start] = compile_patterns([Regex("ab?")], SMALL, config)
    [a, b] = (SMALL.convert_tokens_to_ids(piece) for piece in "ab")
    state, ends = start, []
    for token in (a, b):
        ends.append(np.asarray(allowed(automaton, jnp.int32(state), 0))[[END, END_OF_TURN]])
        state = int(after(automaton, jnp.int32(state), jnp.int32(token)))
    mask = np.asarray(allowed(automaton, jnp.int32(state)))
    np.testing.assert_array_equal(ends, [[False, False], [True, True]])
    np.testing.assert_array_equal(np.flatnonzero(mask), [END, END_OF_TURN])
    for end in END, END_OF_TURN:
        assert int(after(automaton, jnp.int32(state), jnp.int32(end))) == DEAD_END
    assert not np.asarray(allowed(automaton, jnp.int32(DEAD_END))).any()


def test_tokens_without_text_are_never_allowed(tokenizer):
    config = config_of(tokenizer)
    automaton, [start] = compile_patterns([Regex("(?s).*")], tokenizer, config)
    first = np.asarray(allowed(automaton, jnp.int32(start)))
    state = int(after(automaton, jnp.int32(start), jnp.int32(spell(tokenizer, "ab")[-1])))
    for mask in first, np.asarray(allowed(automaton, jnp.int32(state))):
        assert mask[END]
        assert not mask[[PAD, UNKNOWN]].any()
        assert not mask[len(tokenizer) :].any()
        special = [id for id in tokenizer.all_special_ids if id != END]
        assert not mask[special].any()
        assert mask.sum() > 10


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_are_text_where_the_pattern_names_them(name):
    tokenizer = TOKENIZERS[name]()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<sep>"]}, replace_extra_special_tokens=False
    )
    tokenizer.add_tokens(["<usr>"])
    config = config_of(tokenizer)
    detokenizer = Detokenizer(tokenizer, control_token_ids(config))
    pattern = "[ab ]{0,3}(?:(?:\\<sep>| <usr> ?|<usr>)[ab ]{0,3}){1,3}".replace("\\<", "<")
    automaton, [start] = compile_patterns([Regex(pattern)], tokenizer, config)
    used = set()
    for tokens in walk(automaton, start, 12, rows=60):
        used |= set(tokens)
        assert re.fullmatch(pattern, detokenizer.text(tokens)), tokens
    assert set(tokenizer.convert_tokens_to_ids(["<sep>", "<usr>"])) <= used


def test_several_patterns_share_a_table_and_equal_ones_their_states():
    wanted = [Regex("a+"), Regex("(?:ab)+"), Regex("a+"), JsonSchema({"enum": [1, 12]})]
    automaton, starts = compile_patterns(wanted, SMALL, SMALL_CONFIG)
    assert starts[0] == starts[2]
    assert len(set(starts)) == 3
    for pattern, start in zip(wanted, starts, strict=True):
        for tokens, text in SEQUENCES.items():
            assert accepts(automaton, start, tokens) == bool(re.fullmatch(pattern.regex, text))


def test_the_unconstrained_state_allows_all_tokens_and_leads_to_itself():
    automaton, _ = compile_patterns([Regex("a")], SMALL, SMALL_CONFIG)
    state = jnp.full((2, 3), UNCONSTRAINED)
    assert np.asarray(allowed(automaton, state)).all()
    assert np.asarray(allowed(automaton, state, 1)).all()
    tokens = jnp.array([[0, 1, 5], [6, 7, SMALL_CONFIG.vocab_size - 1]])
    np.testing.assert_array_equal(after(automaton, state, tokens), state)


def test_rows_have_limits_of_their_own_under_jit_and_vmap():
    automaton, [start] = compile_patterns([Regex("abab|b")], SMALL, SMALL_CONFIG)
    state, left = jnp.full((3, 2), start), jnp.array([[1, 2], [2, 1], [9, 1]])
    expected = np.asarray(
        [[allowed(automaton, jnp.int32(start), int(limit)) for limit in row] for row in left]
    )
    np.testing.assert_array_equal(jax.jit(allowed)(automaton, state, left), expected)
    over_rows = jax.vmap(allowed, in_axes=(None, 0, 0))
    np.testing.assert_array_equal(over_rows(automaton, state, left), expected)


def test_another_pattern_of_about_the_same_size_compiles_nothing():
    step = jax.jit(lambda *arguments: allowed(*arguments))  # with a cache of its own
    for pattern in "(?:ab)+", "b{3}", "a{1,20}\\.":
        automaton, [start] = compile_patterns([Regex(pattern)], SMALL, SMALL_CONFIG)
        step(automaton, jnp.full((4,), start), jnp.int32(7))
    assert step._cache_size() == 1


def test_a_pattern_is_compiled_once_for_a_tokenizer(monkeypatch):
    compiled = []

    def counted(*arguments: Any) -> Any:
        compiled.append(arguments)
        return token_automata.over_tokens(*arguments)

    monkeypatch.setattr(patterns, "over_tokens", counted)
    for _ in range(3):
        compile_patterns([Regex("ab{7}"), Regex("ab{7}")], SMALL, SMALL_CONFIG)
    assert len(compiled) == 1
    compile_patterns([Regex("ab{7}")], t5(), SMALL_CONFIG)
    assert len(compiled) == 2


def test_patterns_are_hashable_values():
    assert Regex("a") == Regex("a") != Regex("b")
    schema = {"type": "array", "items": {"enum": ["a", 1]}}
    assert JsonSchema(schema) == JsonSchema(json.dumps(schema, indent=2))
    assert len({Regex("a"), Regex("a"), JsonSchema(schema), JsonSchema(dict(schema))}) == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "missing \\), unterminated subpattern"),
        ("a)(b", "a parenthesis is closed that was not opened"),
        ("[a", "unterminated character set"),
        ("a{2,1}", "min repeat greater than max repeat"),
        ("(?=a)b", "look-around"),
        ("(a)\\1", "backreferences"),
        ("\\bab", "word boundaries"),
        ("a\\Z", "Z"),
        ("a|^b", "\\^ may stand only at the ends"),
        ("(a$|b)", "\\$ may stand only at the ends"),
        ("a[^\\s\\S]", "matches no text"),
    ],
)
def test_a_pattern_that_no_automaton_can_follow_is_refused(pattern, message):
    with pytest.raises(UserError, match=message) as error:
        Regex(pattern)
    assert repr(pattern) in str(error.value)


def test_a_pattern_that_no_token_can_spell_is_refused():
    with pytest.raises(UserError, match=r"tokens of this T5Tokenizer can spell.* '\{', '\}'"):
        compile_patterns(
            [JsonSchema({"properties": {}})], SMALL, SMALL_CONFIG
        )  # T5's vocabulary has no braces


def test_a_tokenizer_is_needed_and_its_bytes():
    with pytest.raises(UserError, match="need a tokenizer"):
        compile_patterns([Regex("a")], None, SMALL_CONFIG)
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, "a", "##b"])}
    word_piece = FastTokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    word_piece.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_piece, unk_token="<unk>")
    with pytest.raises(UserError, match="give a list of allowed outputs"):
        compile_patterns([Regex("a")], tokenizer, config_of(tokenizer))


def test_a_pattern_whose_table_would_be_huge_is_refused(monkeypatch):
    monkeypatch.setattr(transitions, "MOST_CELLS", 1 << 14)
    with pytest.raises(UserError, match="lower the numbers of repetitions"):
        compile_patterns([Regex("[ab]{0,900}")], SMALL, SMALL_CONFIG)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(UserError, match=r"pip install 'pid_jax\[patterns\]'"):
        Regex("a pattern that no other test has")


def test_the_library_is_imported_only_where_a_pattern_is():
    program = "import sys, pid_jax.decoding.patterns; print('outlines_core' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "False"


PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 4},
        "b": {"type": "integer", "minimum": 0},
        "c": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/flag"}]},
    },
    "required": ["b"],
    "$defs": {"flag": {"type": "boolean"}},
}
SCHEMAS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "object": (PERSON, [{"a": "xy", "b": 3, "c": None}, {"b": 0}], [{"a": "x"}, {"b": -1}, 3]),
    "optional": (
        {"properties": {name: {"type": "null"} for name in "abcd"}, "additionalProperties": False},
        [{}, {"c": None}, {"a": None, "d": None}],
        [{"e": None}, {"a": 1}],
    ),
    "numbers": (
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
        [[0], [-1.5, 20, 0.25]],
        [[], [1, 2, 3, 4], ["1"]],
    ),
    "tuple": (
        {"prefixItems": [{"enum": ["a", 1, None, True]}, {"const": "b"}], "maxItems": 2},
        [["a", "b"], [None, "b"]],
        [["a"], ["a", "b", 1]],
    ),
    "map": (
        {"type": "object", "additionalProperties": {"type": ["boolean", "null"]}},
        [{}, {"a": True, "bcd": None}],
        [{"a": 1}],
    ),
    "escapes": (
        {"enum": ['a"b\\c', "n\nt\t", {"a.b": [1, {"c": "*"}]}]},
        ['a"b\\c', "n\nt\t", {"a.b": [1, {"c": "*"}]}],
        ["a", {"axb": [1, {"c": "*"}]}],
    ),
    "name": (
        {"properties": {'a"\\.b': {"type": "null"}}, "required": ['a"\\.b']},
        [{'a"\\.b': None}],
        [{}, {'a"\\xb': None}],
    ),
    "string": ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", '"a\\'], ["a", "abcd"]),
    "pattern": ({"type": "string", "pattern": "^[a-d]+x|y$"}, ["abx", "y"], ["", "x", "ay"]),
    "date": ({"type": "string", "format": "date"}, ["2024-02-29", "1999-12-31"], ["2024-02-30"]),
    "moment": (
        {"type": "string", "format": "date-time"},
        ["2024-11-25T23:59:00Z", "2024-11-25T23:59:00.5+02:00"],
        ["2024-11-25T24:00:00Z", "2024-11-25T23:59:00"],
    ),
    "uuid": (
        {"type": "string", "format": "uuid"},
        ["01234567-89ab-cdef-0123-456789abcdef"],
        ["01234567-89ab-cdef-0123"],
    ),
    "single": ({"allOf": [{"type": "integer"}]}, [12, -3], [1.5, "1"]),
}


@pytest.mark.parametrize("tokenizer_name", ["t5_json", "byte_level", "gemma"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_output_is_json_that_satisfies_the_schema(name, tokenizer_name):
    schema, valid, invalid = SCHEMAS[name]
    tokenizer = TOKENIZERS[tokenizer_name]()
    config = config_of(tokenizer)
    detokenizer = Detokenizer(tokenizer, control_token_ids(config))
    if tokenizer_name == "t5_json" and name in ("escapes", "name", "moment"):
        return  # it has no *, and no T
    automaton, [start] = compile_patterns([JsonSchema(schema)], tokenizer, config)
    for limit in shortest(automaton, start), shortest(automaton, start) + 9, 60:
        for tokens in walk(automaton, start, max(limit, shortest(automaton, start)), seed=limit):
            value = json.loads(detokenizer.text(tokens))
            jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    regex = re.compile(JsonSchema(schema).regex)
    for value in valid:
        jsonschema.validate(value, schema)
        assert regex.fullmatch(json.dumps(value))
        assert regex.fullmatch(json.dumps(value, separators=(",", ":")))
    assert not any(regex.fullmatch(json.dumps(value)) for value in invalid)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "the schema is no JSON"),
        ({"type": "integer", "maximum": 3}, r"\$\.maximum cannot be enforced"),
        ({"type": "integer", "minimum": 3}, r"\$\.minimum cannot be enforced unless it is 0"),
        ({"properties": {"a": {"not": {}}}}, r"\$\.properties\.a\.not cannot be enforced"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "uniqueItems cannot"),
        ({"oneOf": [{"type": "null"}]}, "write anyOf"),
        ({"anyOf": []}, r"\$\.anyOf is no list of schemas"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, r"\$\.type cannot be enforced here"),
        ({}, "admits any value"),
        ("true", "no JSON schema"),
        ({"type": "object"}, "admits any object"),
        ({"type": "array"}, "admits any items"),
        ({"type": "text"}, "'text' is none of object, array"),
        ({"type": 3}, "3 is none of"),
        ({"properties": ["a"]}, "is no dict"),
        ({"properties": {}, "required": ["a"]}, "'a' is not among the properties"),
        ({"type": "string", "format": "email"}, "'email' cannot be enforced"),
        ({"type": "string", "pattern": ".*"}, "quotes, backslashes or control characters"),
        ({"type": "string", "pattern": "(a"}, r"\$\.pattern: '\(a': missing"),
        ({"type": "string", "pattern": "a", "minLength": 1}, "only one can be enforced"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength is 3, and maxLength"),
        ({"type": "string", "minLength": -1}, "-1 is no number of 0 or more"),
        ({"type": "integer", "enum": [1, "a"]}, "'a' is not of the type integer"),
        ({"prefixItems": [{"type": "null"}], "minItems": 2}, "exactly these 1 items"),
        ({"$ref": "#/$defs/a"}, "refers to nothing in this schema"),
        ({"$ref": "other.json#/a"}, "refers to nothing in this schema"),
        ({"properties": {"next": {"$ref": "#"}}}, "# refers to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "a refers to itself"),
    ],
)
def test_a_schema_that_outputs_might_contradict_is_refused(schema, message):
    with pytest.raises(UserError, match=message):
        JsonSchema(schema)
