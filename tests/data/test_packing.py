"""Packed rows: which segments share a row, the arrays of a batch, and the sizes that are chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.data import row_shapes
from pid_jax.data.packing import (
    PackedShape,
    SubtaskLengths,
    collate_packed,
    pack,
    part_of,
    sums_by_subtask,
)
from pid_jax.data.pipeline import batch_shapes, largest_packed_shape
from pid_jax.data.row_shapes import RowShape
from pid_jax.data.token_source import LongestSubtasks
from pid_jax.data.tokenizing import TokenizedExample
from tests.helpers.number_examples import (
    END,
    PAD,
    START,
    evaluation,
    lengths_of,
    numbers,
    pairs,
    source_of,
    take,
    training,
)

SPECIAL = {"pad_token_id": PAD, "decoder_start_token_id": START}


def test_the_longest_segments_come_first_and_fill_the_first_row_with_room() -> None:
    # 6 opens row 0, 5 opens row 1, 4 fits row 0 (10), 3 fits row 1 (8), 2 fills row 1.
    assert pack([3, 6, 2, 0, 5, 4], 10) == [[1, 5], [4, 0, 2]]
    assert pack([], 10) == pack([0], 10) == []
    with pytest.raises(ValueError, match="a segment of 11 tokens does not fit a row of 10"):
        pack([11], 10)


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(30, 90))
def test_packing_places_every_segment_once_and_no_two_rows_fit_in_one(
    segments: list[int], row_tokens: int
) -> None:
    rows = pack(segments, row_tokens)
    placed = sorted(index for row in rows for index in row)
    assert placed == [index for index, length in enumerate(segments) if length]
    filled = [sum(segments[index] for index in row) for row in rows]
    assert all(total <= row_tokens for total in filled)
    assert all(
        one + other > row_tokens for i, one in enumerate(filled) for other in filled[i + 1 :]
    )
    assert len(rows) <= 1 or len(rows) < 2 * sum(segments) / row_tokens


EXAMPLE = TokenizedExample(
    "one", [50, 51, 52], [[10, 11], [12], []], [[20, 21, END], [], [22, END]]
)


def test_a_row_has_segments_one_after_another_each_with_positions_from_zero() -> None:
    batch = collate_packed([EXAMPLE], PackedShape(2, 4, 1, 8, 6), **SPECIAL)
    # [start 10 11 20 21] of subtask 0 and [start 22] of subtask 2. Subtask 1 has no target.
    assert batch.tokens[0].tolist() == [[START, 10, 11, 20, 21, START, 22, PAD]]
    assert batch.segments[0].tolist() == [[1, 1, 1, 1, 1, 3, 3, 0]]
    assert batch.positions[0].tolist() == [[0, 1, 2, 3, 4, 0, 1, 0]]
    assert batch.predicting[0][:5].tolist() == [2, 3, 4, 5, 6]
    assert batch.targets[0].tolist() == [20, 21, END, 22, END, PAD]
    assert batch.target_mask.tolist() == [[True] * 5 + [False], [False] * 6]
    assert batch.document_mask.tolist() == [[True] * 3 + [False], [False] * 4]
    assert not batch.segments[1].any()
    assert batch.real_tokens == (3, 7)
    assert batch.shape == PackedShape(2, 4, 1, 8, 6)
    assert batch.shape.decoder_tokens == 16


def test_what_does_not_fit_is_refused() -> None:
    for shape in (
        PackedShape(1, 4, 1, 6, 5),
        PackedShape(1, 4, 1, 8, 4),
        PackedShape(1, 2, 1, 8, 5),
    ):
        with pytest.raises(ValueError, match="not fit into"):
            collate_packed([EXAMPLE], shape, **SPECIAL)


def test_rows_scored_in_parts_give_the_sums_of_all_rows() -> None:
    batch = collate_packed([EXAMPLE, EXAMPLE], PackedShape(3, 4, 4, 5, 6), **SPECIAL)
    values = np.arange(18.0).reshape(3, 6)
    whole = sums_by_subtask(batch, values, 3)
    assert whole.tolist() == [[0 + 1 + 2, 0, 3 + 4], [6 + 7 + 8, 0, 9 + 10], [0, 0, 0]]
    parts = [part_of(batch, slice(first, first + 2)) for first in (0, 2)]
    assert [part.tokens.shape for part in parts] == [(3, 2, 5)] * 2
    np.testing.assert_array_equal(
        sum(part.target_mask.astype(int) for part in parts), batch.target_mask
    )
    for part in parts:
        flat = part.tokens.reshape(3, -1)
        before = np.take_along_axis(flat, part.predicting, axis=1)[part.target_mask]
        assert set(before.tolist()) <= {11, 20, 21, START, 22}
    # Both segments have a row of their own: the first part has them all.
    assert parts[0].target_mask.sum() == 10


def packed_pairs(batch, row):
    """(prompt, target) of each segment of a document, in order of the subtasks."""
    flat, segments = batch.tokens[row].reshape(-1), batch.segments[row].reshape(-1)
    own = segments[batch.predicting[row]]
    found = []
    for segment in sorted(set(segments[segments > 0].tolist())):
        targets = batch.targets[row][(own == segment) & batch.target_mask[row]].tolist()
        tokens = flat[segments == segment].tolist()
        assert tokens[0] == START
        assert tokens[len(tokens) - len(targets) + 1 :] == targets[:-1]
        found.append((tokens[1 : len(tokens) - len(targets) + 1], targets))
    return found


def test_packed_batches_have_the_examples_and_subtasks_of_unpacked_ones() -> None:
    source = source_of(lengths_of(24), 8, negatives=4)
    options = {"max_prompts": 6, "negative_target": [99, END], "negative_rate": 0.5}
    for one, other in zip(
        take(training(source, **options), 18),
        take(training(source, packing=True, **options), 18),
        strict=True,
    ):
        assert numbers(one) == numbers(other)
        assert [pairs(one, row) for row in range(4)] == [
            packed_pairs(other, row) for row in range(4)
        ]
        assert one.real_tokens == other.real_tokens


def test_all_shapes_are_known_from_the_lengths_before_the_first_batch() -> None:
    source = source_of(lengths_of(100, longest=300), 9, negatives=5)
    options = {"max_prompts": 7, "negative_target": [99, END], "negative_rate": 0.3}
    shapes = {batch.shape for batch in take(training(source, packing=True, **options), 150)}
    lengths = {shape.document_tokens for shape in batch_shapes(source, batch_size=4)}
    rows = {(shape.rows, shape.row_tokens, shape.target_tokens) for shape in shapes}
    assert {shape.document_tokens for shape in shapes} <= lengths
    assert len(rows) <= 1 + row_shapes.MOST_ROW_SHAPES
    largest = largest_packed_shape(source, batch_size=4, max_prompts=7)
    # 7 prompts of 1 token with targets of 2: segments of 3.
    assert (largest.rows, largest.row_tokens, largest.target_tokens) == (1, 22, 14)
    assert max(shape.document_tokens for shape in shapes) <= largest.document_tokens


def test_a_process_has_its_rows_in_the_shape_of_the_whole_batch_and_reads_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = source_of(lengths_of(24), 6, negatives=3)
    options = {"max_prompts": 4, "negative_target": [99, END], "negative_rate": 0.5}
    whole = take(training(source, packing=True, **options), 12)
    read = []
    select = type(source).select
    monkeypatch.setattr(
        type(source), "select", lambda self, i, chosen: read.append(i) or select(self, i, chosen)
    )
    own = take(training(source, packing=True, own_rows=lambda _: np.array([1, 3]), **options), 12)
    assert len(read) == 2 * 12
    for all_rows, rows in zip(whole, own, strict=True):
        for ours, theirs in zip(rows, all_rows, strict=True):
            np.testing.assert_array_equal(ours, theirs[[1, 3]])


def test_the_position_of_packed_batches_can_be_restored() -> None:
    source = source_of(lengths_of(24), 6)
    batches = training(source, packing=True, max_prompts=3)
    take(batches, 5)
    state = batches.get_state()
    expected = take(batches, 4)
    again = training(source, packing=True, max_prompts=3)
    again.set_state(state)
    for one, other in zip(expected, take(again, 4), strict=True):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_evaluation_has_every_subtask_of_every_example_in_order() -> None:
    source = source_of(lengths_of(10), 5)
    batches = list(evaluation(source, packing=True))
    assert [number for batch in batches for number in numbers(batch)] == list(range(10))
    for batch in batches:
        for row, _ in enumerate(numbers(batch)):
            expected = [([100 + s], [200 + s, END]) for s in range(5)]
            assert packed_pairs(batch, row) == expected
    assert not batches[-1].segments[2:].any()


def subtasks(*lengths: tuple[int, int]) -> SubtaskLengths:
    prompts, targets = zip(*lengths, strict=True)
    return SubtaskLengths(np.array(prompts), np.array(targets))


def fitting_all(documents: list[SubtaskLengths], most: int | None) -> RowShape:
    longest = LongestSubtasks()
    for lengths in documents:
        longest.add(lengths.prompts.tolist(), lengths.targets.tolist())
    return row_shapes.fitting_all(longest.segment_tokens, longest.target_tokens, most)


def test_a_shape_that_fits_all_holds_the_longest_subtasks_of_each_document() -> None:
    documents = [subtasks((4, 1), (2, 8), (1, 1)), subtasks((3, 9))]
    # At most two subtasks: 10 + 5 tokens in the first document, 12 in the other. 15 in one row.
    assert fitting_all(documents, 2) == RowShape(1, 15, 9)
    # All three: 17 tokens, 18 as a bucket. Targets have 10.
    assert fitting_all(documents, None) == RowShape(1, 18, 10)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 30),
    st.integers(64, 512),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_every_draw_fits_the_shape_that_fits_all(drawn, most, longest_row, random) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(row_shapes, "MOST_ROW_TOKENS", longest_row)
        documents = [subtasks(*lengths) for lengths in drawn]
        shape = fitting_all(documents, most)
        some = [subtasks(*random.sample(lengths, min(most, len(lengths)))) for lengths in drawn]
        assert row_shapes.fitting([shape], some) == shape
        chosen = row_shapes.chosen([some], shape)
        assert chosen[-1] == shape
        assert row_shapes.fitting(chosen, some).cost <= shape.cost


def test_few_shapes_are_chosen_and_each_saves_something() -> None:
    random = np.random.default_rng(0)
    batches = [
        [subtasks(*random.integers(1, 12, (random.integers(1, 12), 2)).tolist()) for _ in range(8)]
        for _ in range(64)
    ]
    largest = fitting_all([one for batch in batches for one in batch], None)
    chosen = row_shapes.chosen(batches, largest)
    assert 2 <= len(chosen) <= row_shapes.MOST_ROW_SHAPES + 1

    def cost(shapes):
        return sum(row_shapes.fitting(shapes, batch).cost for batch in batches)

    for shape in chosen[:-1]:
        others = [other for other in chosen if other != shape]
        assert cost(others) > (1 + row_shapes.LEAST_SAVING) * cost(chosen)
    assert cost(chosen) < cost([largest])
