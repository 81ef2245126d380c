"""Patterns as values, compiled once per tokenizer, and what cannot be compiled."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from pid_jax.decoding import patterns, token_automata, transitions
from pid_jax.decoding.patterns import JsonSchema, Regex, compile_patterns
from pid_jax.errors import UserError
from tests.helpers.tiny_tokenizers import SEQUENCES, SMALL, SMALL_CONFIG, SPECIAL, config_of, t5
from tests.helpers.token_walks import accepts


def test_several_patterns_share_a_table_and_equal_ones_their_states():
    wanted = [Regex("a+"), Regex("(?:ab)+"), Regex("a+"), JsonSchema({"enum": [1, 12]})]
    automaton, starts = compile_patterns(wanted, SMALL, SMALL_CONFIG)
    assert starts[0] == starts[2]
    assert len(set(starts)) == 3
    for pattern, start in zip(wanted, starts, strict=True):
        for tokens, text in SEQUENCES.items():
            assert accepts(automaton, start, tokens) == bool(re.fullmatch(pattern.regex, text))


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
