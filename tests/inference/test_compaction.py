"""Removing finished prompts from a batch, against plain decoding."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax import models
from pid_jax.data.batching import BatchShape, bucket, collate
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.automata import Automata
from pid_jax.decoding.compaction import FEWEST_ROWS, count_active, gather_of, sizes_below, smaller
from pid_jax.decoding.options import GenerationOptions
from pid_jax.inference.compaction_policy import CompactionPolicy, DecodingRun, Savings
from pid_jax.inference.decoding_batch import DecodingBatch
from pid_jax.inference.model import PidModel
from tests.helpers.many_prompts import (
    NEW_TOKENS,
    Answers,
    Cases,
    assert_same,
    generate,
    lists,
    plain,
)
from tests.helpers.tiny_t5 import TINY

REPETITION = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "stop": [[5], [9, 12]]}


def test_the_cases_are_many_and_varied(expected: Answers) -> None:
    lengths = [len(generation.tokens) for row in expected for generation in row]
    assert len(lengths) == 1000
    assert len(set(lengths)) > 8
    assert len({tuple(generation.tokens) for row in expected for generation in row}) > 400


def test_dropping_ended_prompts_changes_nothing_in_1000_cases(
    varied_model: PidModel, cases: Cases, expected: Answers
) -> None:
    answers, report = generate(varied_model, cases, compact=True)
    assert_same(answers, expected)
    _, without = generate(varied_model, cases, compact=False)
    assert without.row_steps_saved == 0
    assert report.row_steps_saved > without.row_steps / 20
    assert report.row_steps + report.row_steps_saved == without.row_steps
    assert report.decoder_calls == without.decoder_calls
    assert (report.batches, report.documents, report.prompts) == (25, 100, 1000)
    # An end token counts, unless the limit came first.
    lengths = [len(generation.tokens) for row in expected for generation in row]
    assert report.tokens == without.tokens == sum(min(n + 1, NEW_TOKENS) for n in lengths)
    assert f"saved {report.row_steps_saved:,} of" in str(report)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 3, "stop": [[5], [9, 12]]},
        {"do_sample": True, "top_k": 9, "top_p": 0.9, "min_new_tokens": 1, **REPETITION},
    ],
    ids=["beams", "samples"],
)
def test_dropping_ended_prompts_changes_nothing_under_any_option(
    varied_model: PidModel, cases: Cases, options: dict[str, Any], gathers_on_host: bool
) -> None:
    some = Cases(cases.documents[:20], [row[:6] for row in cases.prompts[:20]])
    options = {"batch_size": 2, "allowed": lists(some), **options}
    answers, report = generate(varied_model, some, compact=True, **options)
    assert report.row_steps_saved > 0
    assert_same(answers, plain(varied_model, some, **options))


def test_prompt_in_encoder_drops_documents(varied_model: PidModel, cases: Cases) -> None:
    some = cases.some(2)
    options = {"method": "pie", "batch_size": 20}
    answers, report = generate(varied_model, some, compact=True, **options)
    assert report.row_steps_saved > 0
    assert_same(answers, plain(varied_model, some, **options))


@pytest.mark.parametrize(
    ("size", "live", "rows_each", "expected"),
    [
        ((1, 30), (1, 15), 1, (1, 15)),
        ((1, 30), (1, 16), 1, None),
        ((8, 30), (4, 30), 1, (4, 30)),
        ((8, 30), (8, 15), 1, (8, 15)),
        ((8, 30), (4, 15), 1, (4, 30)),
        ((1, 15), (1, 7), 1, (1, 7)),
        ((2, 4), (1, 1), 1, None),
        ((1, 4), (1, 2), 4, (1, 2)),
        ((1, 1), (1, 1), 16, None),
    ],
)
def test_batches_are_halved_once_half_of_them_has_ended(
    size: tuple[int, int],
    live: tuple[int, int],
    rows_each: int,
    expected: tuple[int, int] | None,
) -> None:
    assert smaller(size, live, rows_each) == expected


counts = st.integers(1, 100).map(bucket)


@given(counts, counts, st.integers(1, 8))
def test_sizes_are_few_buckets(documents: int, prompts: int, rows_each: int) -> None:
    sizes = sizes_below((documents, prompts), rows_each)
    assert sizes[0] == (documents, prompts)
    assert len(sizes) == len(set(sizes)) <= 49
    assert all(bucket(count) == count for size in sizes for count in size)
    # One prompt left is always moved to few rows.
    ends = [size for size in sizes if smaller(size, (1, 1), rows_each) is None]
    assert all(math.prod(end) * rows_each <= FEWEST_ROWS or end == (1, 1) for end in ends)


def test_smaller_programs_are_compiled_only_where_they_repay(
    varied_model: PidModel, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PidModel(varied_model.model, varied_model.params)  # nothing compiled as yet
    options = {"batch_size": 1, "compact": "auto"}
    monkeypatch.setattr(Savings, "repays", lambda *_: False)
    _, report = generate(model, cases.some(3), **options)
    assert [one.program for one in model.programs.compilations] == ["encode", "prefill", "decode"]
    assert report.row_steps_saved == 0
    monkeypatch.setattr(Savings, "repays", lambda *_: True)
    many, report = generate(model, cases.some(16), **options)
    compiled = len(model.programs.compilations)
    assert compiled > 3
    assert report.row_steps_saved > 0
    assert_same(many, plain(model, cases.some(16), batch_size=1))
    # What is compiled is used, whether or not another would repay.
    monkeypatch.setattr(Savings, "repays", lambda *_: False)
    _, report = generate(model, cases.some(3), **options)
    assert report.row_steps_saved > 0
    assert len(model.programs.compilations) == compiled


def test_what_a_batch_would_have_saved_is_counted_by_hand() -> None:
    """4 steps of 8 rows in 4 s: for the last two, 2 rows would have done: 12 of 32 row steps."""
    savings, run = Savings(), DecodingRun()
    run.add((1, 8), 4, 4.0)
    lengths, active = np.array([[1, 1, 1, 2, 2, 2, 5, 5]]), np.ones((1, 8), bool)
    savings.add(run, lengths, active, [("two", (1, 2)), ("one", (1, 1))])
    for seconds, left, expected in [(2.2, 0, True), (2.3, 0, False), (4.4, 1, True)]:
        assert savings.repays("two", seconds, left) == expected
    assert not savings.repays("one", 0.1, 9)
    assert not savings.repays("unheard of", 0.1, 9)


def test_documents_that_end_early_beside_others_leave_no_batch_stuck(
    varied_model: PidModel,
) -> None:
    """2 of 4 documents have long answers, all others end at once; then twice as many prompts.

    A size that was compiled for 8 prompts must not stop the steps of a batch of 16.
    """
    model = PidModel(varied_model.model, varied_model.params)
    documents = [[5, 6], [7, 8], [9, 10], [11, 12]]
    for prompts in (8, 16):
        allowed: list[list[list[list[int]]]] = [
            [[[3] * 9] if i < 2 else [[]]] * prompts for i in range(4)
        ]
        rows_of_prompts = [[[2 + j % 20] for j in range(prompts)] for _ in documents]
        expected = [[one for [one] in row] for row in allowed]
        for compact in (True, "auto", False):
            answers, _ = generate(
                model, Cases(documents, rows_of_prompts), allowed=allowed, compact=compact
            )
            assert [[one.tokens for one in row] for row in answers] == expected


@given(
    lengths=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=12), min_size=1, max_size=5),
    compiled=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), max_size=4),
    repays=st.booleans(),
    compact=st.sampled_from([True, "auto", False]),
)
@settings(deadline=None, max_examples=300)
def test_every_round_of_decoding_moves_or_takes_a_step(
    lengths: list[list[int]], compiled: list[tuple[int, int]], repays: bool, compact: Any
) -> None:
    """Whatever ends when, and whatever is compiled: the policy alone, without a model."""
    count, width = len(lengths), max(map(len, lengths))
    size = bucket(count), bucket(width)
    ends = np.zeros(size, np.int64)
    for row, of_document in enumerate(lengths):
        ends[row, : len(of_document)] = of_document
    policy = CompactionPolicy()
    policy._savings = cast(Any, SimpleNamespace(repays=lambda *_: repays))
    batch = batch_of(size, compact)
    kinds = {batch_of(one, compact).kind(one): 1.0 for one in [*compiled, size]}
    step, rounds, finished = 0, 0, ends <= 0
    while not finished.all():
        rounds += 1
        assert rounds < 60
        target = policy.target(batch, finished, kinds)
        if target is not None:
            assert math.prod(target) < math.prod(size)
            documents, columns, real = gather_of(~finished, target)
            assert real.sum() == (~finished).sum()
            ends = np.where(real, np.take_along_axis(ends[documents], columns, axis=1), 0)
            size, finished = target, ~real
        stop_at, before = policy.stop_at(batch, finished, kinds), step
        while True:  # as `decode` does
            active = count_active(ends <= step)
            if not (active[0] > stop_at[0] and active[1] > stop_at[1]):
                break
            step += 1
        assert step > before
        finished = ends <= step


def batch_of(size: tuple[int, int], compact: Any) -> DecodingBatch:
    shape = BatchShape(size[0], 32, size[1], 4, 8)
    options = GenerationOptions().compiled(models.build(TINY).config, Automata())
    examples = [TokenizedExample("", [5], [[]] * size[1], [()] * size[1])] * size[0]
    one = dataclasses.replace(shape, target_tokens=1)
    batch = collate(examples, one, pad_token_id=0, decoder_start_token_id=0)
    limits = np.full(size, 8, np.int32)
    return DecodingBatch(batch, np.ones(size, bool), limits, shape, options, compact=compact)


def test_all_transfers_are_explicit(
    varied_model: PidModel, cases: Cases, gathers_on_host: bool
) -> None:
    """An implicit one stalls an accelerator unseen."""
    some = cases.some(4)
    generate(varied_model, some, compact=True)
    with jax.transfer_guard("disallow"):
        _, report = generate(varied_model, some, compact=True)
    assert report.prompts == 40
