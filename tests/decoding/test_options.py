"""The options of decoding, and what of them is part of the program."""

import math
from typing import Any

import pytest

from pid_jax import models
from pid_jax.decoding.automata import Automata
from pid_jax.decoding.options import GenerationOptions
from pid_jax.errors import UserError
from tests.helpers.tiny_t5 import TINY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1"),
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": 2, "do_sample": True}, "num_beams > 1 and do_sample=True"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 needs at least as many beams"),
        ({"num_return_sequences": 5, "num_beams": 4}, "num_return_sequences=5.*num_beams=4"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": math.nan}, "temperature must be above 0.*nan"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size must be at least 0"),
        ({"stop": "end"}, "stop must be a list of texts"),
        ({"draft_tokens": 3, "num_beams": 2}, "draft_tokens is for greedy decoding"),
        ({"draft_tokens": 3, "do_sample": True}, "draft_tokens is for greedy decoding"),
        ({"encoder_repetition_penalty": 0.0}, "encoder_repetition_penalty must be above 0"),
        ({"min_p": 1.5, "do_sample": True}, "min_p must be at least 0 and at most 1"),
        ({"logits_processors": [3]}, r"logits_processors\[0\] must be a function"),
        ({"draft_ngram": 0}, "draft_ngram must be at least 1"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationOptions(**options)


def test_numbers_do_not_change_the_program() -> None:
    """Numbers are leaves of the options, or each value would compile."""
    some = GenerationOptions(do_sample=True, top_p=0.5, repetition_penalty=1.2, seed=1)
    other = GenerationOptions(
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        repetition_penalty=0.9,
        min_new_tokens=1,
        seed=2,
    )
    config = models.build(TINY).config
    signatures = [one.compiled(config, Automata()).signature() for one in (some, other)]
    assert signatures[0] == signatures[1]
    assert hash(signatures[0]) == hash(signatures[1])


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.1},
        {"early_stopping": True},
        {"length_penalty": 2.0},
    ],
    ids=str,
)
def test_what_would_have_no_effect_is_refused(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(UserError, match=f"{name}=.* has an effect only with"):
        GenerationOptions(**options)


def test_stops_are_safe_from_later_changes_and_hashable() -> None:
    stop: list[str | list[int]] = ["end", [5, 6]]
    options = GenerationOptions(stop=stop)
    stop.clear()
    assert options.stop == ("end", (5, 6))
    assert hash(options) == hash(GenerationOptions(stop=["end", [5, 6]]))
