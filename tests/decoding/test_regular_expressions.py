"""Texts of random walks through the automata of regular expressions, judged by Python's `re`."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.decoding.patterns import Regex, compile_patterns
from pid_jax.decoding.token_automata import shortest
from pid_jax.errors import UserError
from pid_jax.models.protocol import control_token_ids
from tests.helpers.tiny_tokenizers import (
    SEQUENCES,
    SMALL,
    SMALL_CONFIG,
    SMALL_DETOKENIZER,
    SPELLS_ANYTHING,
    TOKENIZERS,
    config_of,
    spell,
)
from tests.helpers.token_walks import accepts, walk


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
