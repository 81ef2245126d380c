import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pid_jax.data.batching import (
    BatchShape,
    bucket,
    bucket_below,
    collate,
    shape_of,
)
from pid_jax.data.tokenizing import TokenizedExample

PAD, START = 90, 91  # no token below is either

tokens = st.lists(st.integers(1, 80), max_size=20)
subtasks = st.lists(st.tuples(tokens, tokens), max_size=5)
sets = st.lists(st.tuples(tokens, subtasks), min_size=1, max_size=4)


def examples_of(drawn):
    return [
        TokenizedExample(
            id=str(number),
            document=document,
            prompts=[prompt for prompt, _ in pairs],
            targets=[target for _, target in pairs],
        )
        for number, (document, pairs) in enumerate(drawn)
    ]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *[(0, 1), (1, 1), (15, 15), (16, 16), (17, 18), (31, 32), (32, 32), (33, 36), (64, 64)],
        *[(65, 72), (100, 104), (128, 128), (129, 144), (500, 512), (513, 576), (1536, 1536)],
    ],
)
def test_buckets_are_eight_to_a_power_of_two(size, expected):
    assert bucket(size) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 32), (1, 32), (32, 32), (33, 64), (200, 224), (257, 288), (520, 576)]
)
def test_a_multiple_makes_buckets_coarser(size, expected):
    assert bucket(size, multiple=32) == expected


@given(size=st.integers(0, 10**6), multiple=st.sampled_from([1, 2, 8, 32, 64, 128]))
def test_a_bucket_holds_its_size_and_wastes_little(size, multiple):
    rounded = bucket(size, multiple=multiple)
    assert rounded >= max(size, 1)
    assert rounded % multiple == 0
    assert rounded - size <= max(size / 8, multiple)
    assert bucket(rounded, multiple=multiple) == rounded
    assert bucket(size + 1, multiple=multiple) >= rounded


def test_buckets_are_few():
    assert len({bucket(size) for size in range(1, 4097)}) == 16 + 8 * 8
    assert len({bucket(size, multiple=64) for size in range(1, 1025)}) == 16


@pytest.mark.parametrize("multiple", [0, -2, 3, 48])
def test_a_multiple_that_is_no_power_of_two_is_refused(multiple):
    with pytest.raises(ValueError, match="power of two"):
        bucket(5, multiple=multiple)


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="not -1"):
        bucket(-1)


@given(size=st.integers(1, 10**6))
def test_the_bucket_below_is_the_largest_that_is_no_larger(size):
    below = bucket_below(size)
    assert below <= size
    assert bucket(below) == below
    assert bucket(below + 1) > size


def test_nothing_has_no_bucket_below_it_but_one():
    assert bucket_below(0) == 1


def test_a_batch_written_out_by_hand():
    examples = [
        TokenizedExample("a", [5, 6, 7, 1], prompts=[[8], [9, 10]], targets=[[3, 1], []]),
        TokenizedExample("b", [1], prompts=[], targets=[]),
    ]
    shape = BatchShape(documents=3, document_tokens=5, prompts=2, prompt_tokens=4, target_tokens=3)
    batch = collate(examples, shape, pad_token_id=0, decoder_start_token_id=2)

    absent = [0, 0, 0, 2]
    np.testing.assert_array_equal(
        batch.documents, [[5, 6, 7, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch.document_mask, [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch.prompts, [[[0, 0, 2, 8], [0, 2, 9, 10]], [absent, absent], [absent, absent]]
    )
    alone = [0, 0, 0, 1]
    np.testing.assert_array_equal(
        batch.prompt_mask, [[[0, 0, 1, 1], [0, 1, 1, 1]], [alone, alone], [alone, alone]]
    )
    nothing = [[0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(batch.targets, [[[3, 1, 0], [0, 0, 0]], nothing, nothing])
    np.testing.assert_array_equal(batch.target_mask, [[[1, 1, 0], [0, 0, 0]], nothing, nothing])


@given(sets)
def test_masked_positions_hold_exactly_the_examples_and_nothing_else(drawn):
    examples = examples_of(drawn)
    shape = shape_of(examples, document_multiple=8)
    batch = collate(examples, shape, pad_token_id=PAD, decoder_start_token_id=START)

    for example, document, mask in zip(
        examples, batch.documents, batch.document_mask, strict=False
    ):
        assert document[mask].tolist() == example.document
    for row, example in enumerate(examples):
        for column in range(shape.prompts):
            present = column < len(example.prompts)
            prompt = example.prompts[column] if present else []
            target = example.targets[column] if present else []
            mask = batch.prompt_mask[row, column]
            assert batch.prompts[row, column][mask].tolist() == [START, *prompt]
            mask = batch.target_mask[row, column]
            assert batch.targets[row, column][mask].tolist() == target
    for values, mask in zip(batch[::2], batch[1::2], strict=True):
        assert (values[~mask] == PAD).all()
        assert values.dtype == np.int32
        assert mask.dtype == np.bool_


@given(sets)
def test_prompts_end_and_documents_and_targets_start_at_the_edge(drawn):
    examples = examples_of(drawn)
    shape = shape_of(examples, document_multiple=8)
    batch = collate(examples, shape, pad_token_id=PAD, decoder_start_token_id=START)

    assert batch.prompt_mask[..., -1].all()
    assert (np.diff(batch.prompt_mask.astype(int), axis=-1) >= 0).all()
    assert (np.diff(batch.document_mask.astype(int), axis=-1) <= 0).all()
    assert (np.diff(batch.target_mask.astype(int), axis=-1) <= 0).all()


def test_an_absent_document_has_only_start_tokens():
    shape = BatchShape(2, 4, 2, 3, 2)
    batch = collate([], shape, pad_token_id=0, decoder_start_token_id=7)
    assert not batch.document_mask.any()
    assert not batch.target_mask.any()
    assert (batch.prompts[..., -1] == 7).all()
    assert batch.prompt_mask.sum() == 2 * 2


def test_a_document_without_tokens_is_a_row_without_tokens():
    example = TokenizedExample("empty", [], prompts=[[4]], targets=[[5]])
    batch = collate([example], shape_of([example]), pad_token_id=0, decoder_start_token_id=7)
    assert batch.documents.shape == (1, 32)
    assert not batch.document_mask.any()
    assert batch.target_mask.any()


@pytest.mark.parametrize(
    "example",
    [
        TokenizedExample("long", [1] * 5, [], []),
        TokenizedExample("long", [1], [[1]] * 3, [[1]] * 3),
        TokenizedExample("long", [1], [[1, 1, 1]], [[1]]),  # and the start token: 4
        TokenizedExample("long", [1], [[1]], [[1, 1, 1]]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(example):
    with pytest.raises(ValueError, match="'long' does not fit"):
        collate([example], BatchShape(1, 4, 2, 3, 2), pad_token_id=0, decoder_start_token_id=0)


def test_too_many_documents_are_refused():
    example = TokenizedExample("a", [1], [], [])
    with pytest.raises(ValueError, match="2 examples do not fit"):
        collate([example] * 2, BatchShape(1, 4, 2, 3, 2), pad_token_id=0, decoder_start_token_id=0)


def test_prompts_and_targets_of_different_number_are_refused():
    with pytest.raises(ValueError, match="2 prompts but 1 targets"):
        TokenizedExample("a", [1], [[1], [2]], [[3]])


def test_batches_and_tokens_need_neither_grain_nor_transformers_nor_torch():
    program = (
        "import sys, pid_jax.data.batching, pid_jax.data.tokenizing\n"
        "print([name for name in ('grain', 'transformers', 'tokenizers', 'torch') "
        "if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
