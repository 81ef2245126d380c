"""Training batches: their content, how they are drawn, and where a restored iterator continues."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pid_jax.data.examples import Example, Subtask
from pid_jax.data.tokenizing import TokenizedExamples
from pid_jax.errors import UserError
from tests.helpers.number_examples import (
    END,
    NONE,
    WIDE,
    NumberTokenizer,
    evaluation,
    lengths_of,
    numbers,
    pairs,
    prompt_before_document,
    source_of,
    take,
    training,
)


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_an_epoch_visits_every_example_once():
    batches = training(source_of(lengths_of(24), 2))
    for _ in range(3):
        epoch = take(batches, 6)
        assert sorted(itertools.chain(*map(numbers, epoch))) == list(range(24))


def test_the_last_batch_of_an_epoch_is_filled_with_others_of_that_epoch():
    epoch = take(training(source_of(lengths_of(10), 2)), 3)
    visits = Counter(itertools.chain(*map(numbers, epoch)))
    assert set(visits) == set(range(10))
    assert sorted(visits.values()) == [1] * 8 + [2] * 2


def test_fewer_examples_than_a_batch_are_repeated():
    batch = next(training(source_of([3, 4, 5], 1), batch_size=7))
    assert sorted(Counter(numbers(batch)).values()) == [2, 2, 3]


def test_the_seed_decides_everything_and_epochs_differ():
    source = source_of(lengths_of(24), 6)
    options = {"max_prompts": 2}
    first = take(training(source, **options), 12)
    again = take(training(source, **options), 12)
    other = take(training(source, **options, seed=4), 12)
    assert all(map(same, first, again))
    assert not any(map(same, first, other))
    assert not any(map(same, first[:6], first[6:]))


def test_threads_and_prefetching_change_nothing():
    source = source_of(lengths_of(24), 6)
    alone = take(training(source, max_prompts=2), 20)
    for threads, prefetch in [(1, 4), (3, 8)]:
        batches = training(source, max_prompts=2, threads=threads, prefetch=prefetch)
        assert all(map(same, alone, take(batches, 20)))


def test_batches_hold_documents_of_similar_length_in_no_order_of_length():
    source = source_of(lengths_of(320), 1)
    padding = {}
    for window in (1, 16):
        batches = take(training(source, window=window, document_multiple=1), 80)
        real = sum(batch.document_mask.sum() for batch in batches)
        padding[window] = 1 - real / sum(batch.document_mask.size for batch in batches)
    assert padding[16] < padding[1] / 3
    longest = [int(batch.document_mask.sum(axis=1).max()) for batch in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_a_batch_is_what_its_examples_are():
    source = source_of(lengths_of(24), 5, negatives=2)
    for batch in take(training(source, max_prompts=3), 12):
        for row, number in enumerate(numbers(batch)):
            assert batch.documents[row][batch.document_mask[row]].tolist() == (
                source[number].document
            )
            for prompt, target in pairs(batch, row):
                subtask = prompt[0] - 100
                assert target == (NONE if subtask >= 3 else [200 + subtask, END])


def test_at_most_max_prompts_are_drawn_without_repetition_and_all_get_their_turn():
    source = source_of(lengths_of(24), 8)
    drawn = Counter()
    for batch in take(training(source, max_prompts=3), 60):
        assert batch.prompts.shape[1] == 3
        for row in range(4):
            prompts_of_row = [prompt[0] for prompt, _ in pairs(batch, row)]
            assert len(set(prompts_of_row)) == 3
            drawn.update(prompts_of_row)
    assert set(drawn) == set(range(100, 108))
    assert all(60 < count < 120 for count in drawn.values())  # 90 each on average


def test_without_max_prompts_every_subtask_is_used():
    for batch in take(training(source_of(lengths_of(24), 8)), 6):
        for row in range(4):
            assert [prompt for prompt, _ in pairs(batch, row)] == [[100 + n] for n in range(8)]


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_negative_targets_stay_at_the_rate(rate, expected):
    source = source_of(lengths_of(24), 20, negatives=16)
    batches = take(training(source, negative_target=NONE, negative_rate=rate), 60)
    targets = [target for batch in batches for row in range(4) for _, target in pairs(batch, row)]
    assert len(targets) - targets.count(NONE) == 60 * 4 * 4  # every other target stays
    share = targets.count(NONE) / (60 * 4 * 16)
    # 3840 draws: the standard deviation of the share is at most 0.007.
    assert share == pytest.approx(expected, abs=0.03)


def test_the_cap_comes_after_the_rate():
    source = source_of(lengths_of(24), 20, negatives=16)
    options = {"negative_target": NONE, "negative_rate": 0.0, "max_prompts": 4}
    for batch in take(training(source, **options), 12):
        for row in range(4):
            assert [target for _, target in pairs(batch, row)] == [[200 + n, END] for n in range(4)]


def test_a_document_with_nothing_but_negative_targets_has_one():
    source = source_of(lengths_of(24), 5, negatives=5)
    used = Counter()
    for batch in take(training(source, negative_target=NONE, negative_rate=0.0), 60):
        for row in range(4):
            ((prompt, target),) = pairs(batch, row)
            assert target == NONE
            used.update(prompt)
    assert set(used) == set(range(100, 105))


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 0), (1, 4), (3, 8)])
@pytest.mark.parametrize("taken", [0, 1, 5, 6, 17])
def test_a_restored_iterator_continues_exactly(threads, prefetch, taken):
    source = source_of(lengths_of(24), 6)  # 6 batches an epoch
    options = {"max_prompts": 2, "threads": threads, "prefetch": prefetch}
    uninterrupted = training(source, **options)
    take(uninterrupted, taken)
    state = uninterrupted.get_state()
    expected = take(uninterrupted, 15)

    resumed = training(source, **options)
    take(resumed, 3)  # where it stood before does not matter
    resumed.set_state(state)
    assert all(map(same, expected, take(resumed, 15)))

    without_threads = training(source, **{**options, "threads": 0, "prefetch": 0})
    take(without_threads, taken)
    assert all(map(same, expected, take(without_threads, 15)))


@pytest.mark.parametrize("threads", [0, 2])
def test_orbax_saves_and_restores_the_position(tmp_path, threads):
    ocp = pytest.importorskip("orbax.checkpoint").v1
    source = source_of(lengths_of(24), 6)
    options = {"max_prompts": 2, "threads": threads}
    batches = training(source, **options)
    take(batches, 8)
    state = {"step": np.asarray(8), "w": np.arange(3.0)}
    ocp.save_checkpointables(tmp_path / "checkpoint", {"state": state, "data": batches})
    expected = take(batches, 10)

    fresh = training(source, **options)
    loaded = ocp.load_checkpointables(
        tmp_path / "checkpoint", {"state": {"step": np.asarray(0), "w": np.zeros(3)}, "data": fresh}
    )
    assert all(map(same, expected, take(loaded["data"], 10)))
    assert int(loaded["state"]["step"]) == 8


def test_orbax_saves_the_position_of_the_call_while_batches_go_on(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint").v1
    source = source_of(lengths_of(24), 6)
    batches = training(source, max_prompts=2, threads=1)
    take(batches, 8)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        saving = checkpointer.save_checkpointables_async(8, {"data": batches})
        expected = take(batches, 10)
        saving.result()
        fresh = training(source, max_prompts=2, threads=1)
        loaded = checkpointer.load_checkpointables(8, {"data": fresh})
    assert all(map(same, expected, take(loaded["data"], 10)))


def test_arrange_makes_what_is_collated():
    source = source_of(lengths_of(24), 6, negatives=4)
    options = {"max_prompts": 3, "negative_target": NONE, "negative_rate": 0.1}
    plain = take(training(source, **options), 12)
    arranged = take(training(source, **options, arrange=prompt_before_document), 12)
    absent = 0
    for batch, one_prompt_each in zip(plain, arranged, strict=True):
        assert one_prompt_each.prompts.shape == (12, 1, 1)
        expected = [
            ([prompt[0], 1000 + number], target)
            for row, number in enumerate(numbers(batch))
            for prompt, target in pairs(batch, row)
        ]
        for row, (document, target) in enumerate(expected):
            assert one_prompt_each.documents[row, :2].tolist() == document
            assert pairs(one_prompt_each, row) == [([], target)]
        assert not one_prompt_each.document_mask[len(expected) :].any()
        assert not one_prompt_each.target_mask[len(expected) :].any()
        absent += 12 - len(expected)
    assert absent > 0


def test_a_subtask_without_target_cannot_be_trained_on():
    examples = [
        Example("a", "5", (Subtask("q", "6", "7"),)),
        Example("b", "5", (Subtask("q", "6", "7"), Subtask("r", "6"))),
    ]
    source = TokenizedExamples(examples, NumberTokenizer(), WIDE, end_token_id=END)
    with pytest.raises(UserError, match=r"example 'b' has a subtask without a target \(1 of 3"):
        training(source)


def test_an_example_without_subtasks_cannot_be_trained_on():
    examples = [Example("a", "5", (Subtask("q", "6", "7"),)), Example("b", "5", ())]
    source = TokenizedExamples(examples, NumberTokenizer(), WIDE, end_token_id=END)
    with pytest.raises(UserError, match="example 'b' has no subtask"):
        training(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"max_prompts": 0}, "max_prompts is at least 1"),
        ({"negative_rate": 1.5}, "negative_rate is a probability"),
        ({"window": 0}, "window is at least 1"),
        ({"seed": -1}, "seed is at least 0"),
    ],
)
def test_options_out_of_range_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        training(source_of([3, 4], 2), **options)


def test_no_examples_are_a_user_error():
    source = TokenizedExamples([], NumberTokenizer(), WIDE, end_token_id=END)
    with pytest.raises(UserError, match="no examples"):
        training(source)
    with pytest.raises(UserError, match="no examples"):
        next(evaluation(source))


class Reading:
    """A source that counts the examples that are read."""

    def __init__(self, source):
        self.source, self.read = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def select(self, index, subtasks):
        self.read.append(index)
        return self.source.select(index, subtasks)


def of_second(count):
    """The rows of the second of two processes."""
    return np.arange(count // 2, count)


def test_a_process_reads_and_has_its_own_rows_of_the_same_batches():
    lengths = lengths_of(24)
    whole = take(training(source_of(lengths, 6), max_prompts=2), 12)
    source = Reading(source_of(lengths, 6))
    own = take(training(source, max_prompts=2, own_rows=of_second), 12)
    for ours, all_rows in zip(own, whole, strict=True):
        assert same(ours, [array[2:] for array in all_rows])
    assert source.read == [n for batch in whole for n in numbers(batch)[2:]]


def test_rows_of_an_arrangement_are_those_of_the_same_batches():
    source = source_of(lengths_of(9), 3)
    options = {"arrange": prompt_before_document, "max_prompts": 3}
    whole = take(training(source, **options), 4)
    own = take(training(source, **options, own_rows=of_second), 4)
    for ours, all_rows in zip(own, whole, strict=True):
        assert same(ours, [array[6:] for array in all_rows])


def test_own_rows_of_an_evaluation_are_those_of_the_same_batches():
    source = source_of(lengths_of(10), 3)
    # The last batch has two documents: the second process has absent ones only.
    for ours, all_rows in zip(
        evaluation(source, own_rows=of_second), evaluation(source), strict=True
    ):
        assert same(ours, [array[2:] for array in all_rows])
