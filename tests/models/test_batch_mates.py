"""What a document scores does not depend on what is beside it, however long either is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models
from pid_jax.inference.model import PidModel
from tests.helpers.tiny_families import DISTINCT, VARIANTS

LENGTHS = (0, 1, 2, 4, 5, 9, 17, 32)
"""None, one, fewer than LED's global tokens, about a window's radius and LongT5's blocks."""
LONGER = (33, 64, 193)
"""`local_attention` cuts the last into several blocks."""
DOCUMENTS = [[2 + (7 * i + length) % 90 for i in range(length)] for length in LENGTHS + LONGER]
PROMPTS = [[[3, 4, 5], []]] * len(DOCUMENTS)
TARGETS = [[[6, 7, 1], [8]]] * len(DOCUMENTS)


@pytest.fixture(scope="module", params=DISTINCT)
def model(request):
    """Large weights: what is wrongly attended to shows."""
    module = models.build(VARIANTS[request.param])
    random = np.random.default_rng(0)
    yield PidModel(
        module,
        jax.tree.map(
            lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape), jnp.float32),
            models.abstract_params(module),
        ),
    )
    jax.clear_caches()


def test_a_document_scores_the_same_alone_and_in_a_batch(model):
    alone = [
        model.score([document], [prompts], [targets])[0]
        for document, prompts, targets in zip(DOCUMENTS, PROMPTS, TARGETS, strict=True)
        if len(document) <= max(LENGTHS)  # of one compiled shape
    ]
    batched = model.score(DOCUMENTS, PROMPTS, TARGETS, batch_tokens=1 << 20)
    np.testing.assert_allclose(batched[: len(LENGTHS)], alone, rtol=1e-6, atol=1e-5)


def test_an_empty_document_scores_as_one_padding_token(model):
    padding = [model.config.pad_token_id]
    scores = model.score([[], padding], PROMPTS[:2], TARGETS[:2])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6, atol=1e-5)
