"""Which documents form a batch, at which shapes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.inference import batch_planning
from pid_jax.inference.batch_planning import BatchLimits, BatchPlanner, PlannedBatch

Drawn = list[tuple[int, list[int]]]


def examples_of(drawn: Drawn) -> list[TokenizedExample]:
    return [
        TokenizedExample(str(i), [5] * document, [[6] * p for p in prompts], [()] * len(prompts))
        for i, (document, prompts) in enumerate(drawn)
    ]


def tokens(batch: PlannedBatch) -> int:
    shape = batch.shape
    of_prompts = shape.prompts * (shape.prompt_tokens + shape.target_tokens)
    return shape.documents * (shape.document_tokens + of_prompts)


@given(
    drawn=st.lists(
        st.tuples(st.integers(0, 300), st.lists(st.integers(0, 40), max_size=9)), max_size=40
    ),
    budget=st.integers(1, 4000),
    new_tokens=st.integers(1, 40),
    documents=st.none() | st.integers(1, 9),
    sort=st.booleans(),
    devices=st.integers(1, 4),
    steps=st.sampled_from([2, 8]),
)
@settings(deadline=None)
def test_batches_hold_every_example_once_within_their_limits(
    drawn: Drawn,
    budget: int,
    new_tokens: int,
    documents: int | None,
    sort: bool,
    devices: int,
    steps: int,
) -> None:
    examples = examples_of(drawn)
    limits = BatchLimits(budget, documents, steps_per_octave=steps)
    planner = BatchPlanner()
    batches = planner.plan(examples, limits, new_tokens=new_tokens, sort=sort, devices=devices)
    with_prompts = [i for i, example in enumerate(examples) if example.prompts]
    in_order = [index for batch in batches for index in batch.examples]
    assert sorted(in_order) == with_prompts
    if not sort:
        assert in_order == with_prompts
    for batch in batches:
        assert 0 < len(batch.examples) <= batch.shape.documents
        assert documents is None or len(batch.examples) <= documents
        assert tokens(batch) <= budget or batch.shape.documents == 1
        assert batch.shape.target_tokens >= new_tokens
        for index in batch.examples:
            assert len(examples[index].document) <= batch.shape.document_tokens
            assert len(examples[index].prompts) <= batch.parts * batch.shape.prompts
            assert max(map(len, examples[index].prompts)) < batch.shape.prompt_tokens
    # Planned again with these shapes compiled, nothing new is wanted.
    shapes = {batch.shape for batch in batches}
    again = planner.plan(
        examples, limits, new_tokens=new_tokens, sort=sort, devices=devices, compiled=shapes
    )
    assert {batch.shape for batch in again} <= shapes


def ragged(count: int, seed: int = 0) -> list[TokenizedExample]:
    """Documents of 30 to 900 tokens, 5 to 30 prompts each."""
    random = np.random.default_rng(seed)
    return examples_of(
        [
            (int(random.integers(30, 901)), random.integers(3, 13, size=prompts).tolist())
            for prompts in random.integers(5, 31, size=count)
        ]
    )


def test_ragged_documents_take_few_shapes() -> None:
    on_accelerators = BatchLimits(65536, shapes=4, tokens_per_shape=16384, steps_per_octave=2)
    for limits, padded in ((BatchLimits(4096), 1.5), (on_accelerators, 2.5)):
        batches = BatchPlanner().plan(ragged(200), limits, new_tokens=16)
        assert len({batch.shape for batch in batches}) <= limits.shapes
        real = sum(
            len(example.document) + sum(len(prompt) + 17 for prompt in example.prompts)
            for example in ragged(200)
        )
        assert sum(map(tokens, batches)) < padded * real


def test_one_shape_is_not_cut_into_several() -> None:
    batches = BatchPlanner().plan(
        examples_of([(512, [8] * 30)] * 5), BatchLimits(4096), new_tokens=8
    )
    assert {(b.shape.document_tokens, b.shape.prompts) for b in batches} == {(512, 30)}
    assert len({batch.shape for batch in batches}) == 1


def test_more_prompts_than_fit_are_decoded_in_parts_against_one_encoding() -> None:
    [batch] = BatchPlanner().plan(
        examples_of([(500, [8] * 20_000)]), BatchLimits(4096), new_tokens=16
    )
    assert batch.shape.documents == 1
    assert tokens(batch) <= 4096 + 512
    assert batch.parts * batch.shape.prompts >= 20_000


def test_a_larger_compiled_shape_is_used_until_its_padding_would_have_paid_for_another() -> None:
    planner = BatchPlanner()
    limits = BatchLimits(4096, tokens_per_compilation=3000)
    [large] = planner.plan(examples_of([(900, [5] * 20)]), limits, new_tokens=16)
    small = examples_of([(500, [5] * 10)])
    used = [
        planner.plan(small, limits, new_tokens=16, compiled=[large.shape])[0].shape
        for _ in range(6)
    ]
    assert used[0] == large.shape
    assert used[-1].document_tokens == 512
    assert used == sorted(used, key=lambda shape: -shape.document_tokens)


def test_a_compiled_shape_of_one_document_does_not_serve_many() -> None:
    """Each batch reads the weights in each step: that counts as padding does."""
    for limits in (BatchLimits(4096), BatchLimits(65536, steps_per_octave=2, tokens_per_step=512)):
        limits = dataclasses.replace(limits, tokens_per_compilation=20_000)
        planner = BatchPlanner()
        [one] = planner.plan(examples_of([(60, [2, 2])]), limits, new_tokens=16)
        many = examples_of([(60, [2, 2])] * 200)
        own = BatchPlanner().plan(many, limits, new_tokens=16)
        assert planner.plan(many, limits, new_tokens=16, compiled=[one.shape]) == own
        compiled = [one.shape, own[0].shape]
        [few] = planner.plan(many[:8], limits, new_tokens=16, compiled=compiled)
        assert few.shape == own[0].shape


def test_long_targets_do_not_pad_the_short_ones() -> None:
    lengths = [1] * 19 + [500]
    examples = [
        TokenizedExample("", [5] * 30, [[6]] * 10, [[7] * length] * 10) for length in lengths
    ]
    batches = BatchPlanner().plan(examples, BatchLimits(4096), new_tokens=None)
    for batch in batches:
        if any(lengths[index] == 1 for index in batch.examples):
            # Ten segments of two tokens share a row, and predict ten tokens.
            sizes = batch.shape.prompts, batch.shape.prompt_tokens, batch.shape.target_tokens
            assert sizes == (1, 20, 10)
            assert batch.row_tokens == (20,) * len(batch.examples)
    padded = [
        batch.shape.documents * batch.shape.prompts * batch.shape.prompt_tokens * batch.parts
        for batch in batches
    ]
    assert sum(padded) < 8192


def test_planning_takes_time_with_the_number_of_documents_not_with_its_square() -> None:
    """Counted in comparisons of sizes, whose number is what grew."""
    compared = 0
    fits = batch_planning._fits

    def counting(*arguments: Any) -> bool:
        nonlocal compared
        compared += 1
        return fits(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch_planning, "_fits", counting)
        BatchPlanner().plan(ragged(3000), BatchLimits(4096), new_tokens=16)
    assert compared < 20 * 3000
