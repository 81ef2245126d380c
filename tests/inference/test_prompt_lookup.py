"""Prompt lookup, against plain decoding."""

from typing import Any

import pytest

from pid_jax.inference.model import PidModel
from tests.helpers.many_prompts import Answers, Cases, assert_same, generate, lists, plain


@pytest.mark.parametrize(("draft_tokens", "compact"), [(1, False), (3, True), (5, False)])
def test_drafting_changes_nothing_in_1000_cases(
    varied_model: PidModel,
    cases: Cases,
    expected: Answers,
    draft_tokens: int,
    compact: bool,
) -> None:
    answers, report = generate(varied_model, cases, compact=compact, draft_tokens=draft_tokens)
    assert_same(answers, expected)
    _, without = generate(varied_model, cases, compact=False)
    assert 0 < report.accepted_tokens < report.drafted_tokens
    assert report.tokens == without.tokens
    assert report.decoder_calls <= without.decoder_calls
    assert (report.row_steps_saved > 0) == compact
    assert f"{report.accepted_tokens:,} of {report.drafted_tokens:,} drafted" in str(report)


def test_right_drafts_save_calls_of_the_decoder(varied_model: PidModel, cases: Cases) -> None:
    """A batch takes as many calls as its slowest output, hence one prompt at a time."""
    alone = Cases(cases.documents[:40], [row[:1] for row in cases.prompts[:40]])
    answers, report = generate(varied_model, alone, draft_tokens=3, batch_size=1, compact=False)
    expected, without = generate(varied_model, alone, batch_size=1, compact=False)
    assert_same(answers, expected)
    # A right draft saves a call, but for the last token of an output.
    saved = without.decoder_calls - report.decoder_calls
    assert saved > 0
    assert report.accepted_tokens - len(alone.documents) <= saved <= report.accepted_tokens


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.3, "encoder_no_repeat_ngram_size": 3},
    ],
    ids=["none", "history", "document"],
)
def test_drafting_changes_nothing_under_any_option(
    varied_model: PidModel, cases: Cases, rules: dict[str, Any]
) -> None:
    some = cases.some(20)
    options = {"allowed": lists(some), "stop": [[5, 2], [9]], "min_new_tokens": 2, **rules}
    answers, report = generate(varied_model, some, compact=False, draft_tokens=3, **options)
    assert_same(answers, plain(varied_model, some, **options))
    assert report.accepted_tokens > 0
