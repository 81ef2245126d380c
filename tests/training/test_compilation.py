import logging

import jax
import numpy as np

from pid_jax.data.batching import BatchShape, collate
from pid_jax.training.compilation import CompiledByShape


def batch_of(document_tokens):
    return collate(
        [], BatchShape(2, document_tokens, 3, 4, 5), pad_token_id=0, decoder_start_token_id=0
    )


def test_each_shape_is_compiled_once_and_named(caplog):
    programs = CompiledByShape("sum", jax.jit(lambda state, batch: state + batch.documents.sum()))
    state = jax.numpy.asarray(1)
    with caplog.at_level(logging.INFO, "pid_jax"):
        for document_tokens in (8, 16, 8, 16, 8):
            batch = batch_of(document_tokens)
            np.testing.assert_array_equal(programs.for_batch(state, batch)(state, batch), 1)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith(
        "compiled the sum for 2 documents of 8 tokens, 3 prompts of 4, targets of 5 in "
    )
    assert messages[1].endswith("(shape 2)")


def test_a_new_shape_is_known_before_it_is_compiled():
    programs = CompiledByShape("sum", jax.jit(lambda state, batch: state + batch.documents.sum()))
    assert programs.is_new(batch_of(8))
    programs.for_batch(jax.numpy.asarray(1), batch_of(8))
    assert not programs.is_new(batch_of(8))
    assert programs.is_new(batch_of(16))
