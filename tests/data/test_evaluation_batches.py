"""Evaluation batches: every example once, in order, with all subtasks."""

import pytest

from pid_jax.data.examples import Example, Subtask
from pid_jax.data.tokenizing import TokenizedExamples
from tests.helpers.number_examples import (
    END,
    START,
    WIDE,
    NumberTokenizer,
    evaluation,
    lengths_of,
    numbers,
    pairs,
    prompt_before_document,
    source_of,
)


def test_evaluation_visits_every_example_once_in_order_with_all_subtasks():
    source = source_of(lengths_of(10), 5, negatives=3)
    batches = list(evaluation(source))
    assert [numbers(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for batch in batches:
        assert batch.documents.shape[0] == 4
        for row in range(len(numbers(batch))):
            assert len(pairs(batch, row)) == 5
    assert not batches[-1].document_mask[2:].any()
    assert not batches[-1].target_mask[2:].any()
    assert (batches[-1].prompts[2:, :, -1] == START).all()


def test_evaluation_may_lack_targets_and_subtasks():
    examples = [
        Example("a", "5", (Subtask("q", "6"), Subtask("r", "7", "8"))),
        Example("b", "", ()),
    ]
    source = TokenizedExamples(examples, NumberTokenizer(), WIDE, end_token_id=END)
    (batch,) = evaluation(source, batch_size=2)
    assert batch.target_mask.sum(axis=-1).tolist() == [[0, 2], [0, 0]]
    assert batch.document_mask.sum(axis=-1).tolist() == [2, 1]


@pytest.mark.parametrize("options", [{}, {"arrange": prompt_before_document}])
def test_evaluation_of_documents_without_any_subtask_is_all_absent(options):
    source = source_of([3, 4], 0)
    for batch in evaluation(source, **options):
        assert not batch.target_mask.any()
