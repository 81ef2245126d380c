"""Shapes of batches, known before any batch is."""

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.data.pipeline import batch_shapes
from tests.helpers.number_examples import (
    WIDE,
    evaluation,
    lengths_of,
    prompt_before_document,
    source_of,
    take,
    training,
)


def test_shapes_come_from_a_small_set_known_beforehand():
    words = lengths_of(96, longest=500)
    source = source_of(words, 7)
    shapes = batch_shapes(source, batch_size=4, max_prompts=5)
    assert len(shapes) <= 500 // 64 + 1
    sizes = {
        (shape.documents, shape.prompts, shape.prompt_tokens, shape.target_tokens)
        for shape in shapes
    }
    assert sizes == {(4, 5, 2, 2)}  # a prompt is the start token and its own; a target two tokens
    lengths = [shape.document_tokens for shape in shapes]
    # A document has an end token, too. Below 1,024 tokens, buckets are multiples of 64.
    assert lengths == sorted({math.ceil((n + 1) / 64) * 64 for n in words})

    seen = {
        (*batch.documents.shape, *batch.prompts.shape[1:], batch.targets.shape[2])
        for batch in take(training(source, max_prompts=5), 100)
    }
    assert len(seen) > 1
    assert seen <= {
        (s.documents, s.document_tokens, s.prompts, s.prompt_tokens, s.target_tokens)
        for s in shapes
    }


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    subtasks=st.integers(1, 6),
    max_prompts=st.none() | st.integers(1, 8),
    batch_size=st.integers(1, 5),
    arranged=st.booleans(),
)
def test_every_batch_has_a_promised_shape(lengths, subtasks, max_prompts, batch_size, arranged):
    source = source_of(lengths, subtasks)
    options = {"batch_size": batch_size, "document_multiple": 8}
    if arranged:
        options["arrange"] = prompt_before_document
    trained = take(training(source, max_prompts=max_prompts, **options), 8)
    evaluated = list(evaluation(source, **options))
    for batches, limit in ((trained, max_prompts), (evaluated, None)):
        shapes = {
            (s.documents, s.document_tokens, s.prompts, s.prompt_tokens, s.target_tokens)
            for s in batch_shapes(source, max_prompts=limit, **options)
        }
        for batch in batches:
            shape = (*batch.documents.shape, *batch.prompts.shape[1:], batch.targets.shape[2])
            assert shape in shapes


def test_truncated_documents_stay_within_the_bucket_of_the_limit():
    limits = replace(WIDE, document_tokens=100)
    source = source_of(lengths_of(24, longest=500), 1, limits=limits)
    assert batch_shapes(source, batch_size=4)[-1].document_tokens == 128
    assert max(batch.document_mask.sum(axis=1).max() for batch in take(training(source), 6)) == 100
