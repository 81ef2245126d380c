"""The idea: one encoding per document, prompts by vmap, loss on targets alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import Batch, BatchShape, collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample

loss_of = jax.jit(
    prompt_in_decoder.loss, static_argnums=0, static_argnames=("label_smoothing", "z_loss")
)
logits_of = jax.jit(prompt_in_decoder.teacher_forced_logits, static_argnums=0)

EXAMPLES = [
    TokenizedExample("a", [5, 6, 7, 8, 1], [[9, 10], [11]], [[12, 13, 1], [14, 1]]),
    TokenizedExample("b", [15, 1], [[16, 17, 18]], [[1]]),
]


def batch_of(examples, shape=None) -> Batch:
    return collate(examples, shape or shape_of(examples), pad_token_id=0, decoder_start_token_id=0)


def test_loss_is_the_mean_negative_log_probability_of_target_tokens(tiny_model):
    loss, metrics = loss_of(tiny_model.model, tiny_model.params, batch_of(EXAMPLES))
    # PidModel.score is compared with transformers in tests/models.
    scores = tiny_model.score(
        [example.document for example in EXAMPLES],
        [example.prompts for example in EXAMPLES],
        [example.targets for example in EXAMPLES],
    )
    total = sum(score for row in scores for score in row)
    assert metrics.target_tokens == 3 + 2 + 1
    assert metrics.subtasks == 3
    assert float(loss) == pytest.approx(-total / 6, rel=1e-5)
    assert float(metrics.loss) == pytest.approx(-total / 6, rel=1e-5)


def test_padding_and_absent_slots_do_not_change_the_loss_or_its_gradient(tiny_model):
    @jax.jit
    def gradient_of(params, batch):
        def objective(params):
            options = {"z_loss": 0.1, "label_smoothing": 0.1}
            return prompt_in_decoder.loss(tiny_model.model, params, batch, **options)[0]

        return jax.value_and_grad(objective)(params)

    def loss_and_gradient(shape):
        return gradient_of(tiny_model.params, batch_of(EXAMPLES, shape))

    tight, gradient = loss_and_gradient(BatchShape(2, 5, 2, 4, 3))
    loose, padded_gradient = loss_and_gradient(BatchShape(3, 9, 4, 7, 5))
    assert float(loose) == pytest.approx(float(tight), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient,
        padded_gradient,
    )


def test_what_stands_in_masked_positions_does_not_matter(tiny_model):
    batch = batch_of(EXAMPLES, BatchShape(3, 9, 4, 7, 5))
    noisy = Batch(
        np.where(batch.document_mask, batch.documents, 33),
        batch.document_mask,
        np.where(batch.prompt_mask, batch.prompts, 34),
        batch.prompt_mask,
        np.where(batch.target_mask, batch.targets, 35),
        batch.target_mask,
    )
    clean_loss, _ = loss_of(tiny_model.model, tiny_model.params, batch)
    noisy_loss, _ = loss_of(tiny_model.model, tiny_model.params, noisy)
    assert float(noisy_loss) == pytest.approx(float(clean_loss), rel=1e-6)


def test_only_target_tokens_are_predicted(tiny_model):
    batch = batch_of(EXAMPLES)
    logits = logits_of(tiny_model.model, tiny_model.params, batch)
    assert logits.shape == (*batch.targets.shape, tiny_model.config.vocab_size)
    assert logits.dtype == np.float32


def test_label_smoothing_and_z_loss_follow_their_formulas(tiny_model):
    batch = batch_of(EXAMPLES)
    logits = np.asarray(
        logits_of(tiny_model.model, tiny_model.params, batch),
        np.float64,
    )[batch.target_mask]
    targets = batch.targets[batch.target_mask]
    size = logits.shape[-1]
    expected = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_z = math.log(np.exp(row).sum())
        smoothed = np.full(size, 0.1 / size)
        smoothed[target] += 0.9
        expected += -(smoothed * (row - log_z)).sum() + 0.01 * log_z**2
    loss, _ = loss_of(tiny_model.model, tiny_model.params, batch, label_smoothing=0.1, z_loss=0.01)
    assert float(loss) == pytest.approx(expected / len(targets), rel=1e-5)


def test_exact_match_counts_whole_targets(tiny_model):
    batch = batch_of(EXAMPLES)
    best = np.asarray(logits_of(tiny_model.model, tiny_model.params, batch).argmax(-1))
    wrong = (best + 1) % tiny_model.config.vocab_size
    one_token_each = np.zeros_like(batch.target_mask)
    one_token_each[0, :2, 0] = True
    # Logits for first tokens do not depend on the targets, so these are right and wrong.
    targets = np.where(np.arange(best.shape[1])[None, :, None] == 0, best, wrong)
    _, metrics = loss_of(
        tiny_model.model,
        tiny_model.params,
        batch._replace(targets=targets.astype(np.int32), target_mask=one_token_each),
    )
    assert metrics.exact_match == 1 / 2
    assert metrics.token_accuracy == 1 / 2
    assert metrics.subtasks == 2


def test_numpy_batches_need_no_jit(tiny_model):
    model, params, batch = tiny_model.model, tiny_model.params, batch_of(EXAMPLES)
    assert all(isinstance(leaf, np.ndarray) for leaf in batch)
    of = prompt_in_decoder
    encoded = of.encode(model, params, batch.documents, batch.document_mask)
    logits = of.teacher_forced_logits(model, params, batch)
    np.testing.assert_allclose(logits, logits_of(model, params, batch), atol=1e-5)
    loss, metrics = of.loss(model, params, batch)
    in_jit, metrics_in_jit = loss_of(model, params, batch)
    assert float(loss) == pytest.approx(float(in_jit), rel=1e-5)
    np.testing.assert_allclose(metrics, metrics_in_jit, rtol=1e-5)
    np.testing.assert_allclose(
        of.target_log_probabilities(model, params, batch).sum(), -metrics.loss_sum, rtol=1e-5
    )
    # What a document was encoded to, fetched to the host and decoded from there.
    slots = np.arange(batch.prompts.shape[-1])[None]
    arguments = batch.prompts, batch.prompt_mask, of.positions_of(batch.prompt_mask), slots
    hidden, _ = of.decode(model, params, encoded, *arguments)
    again, _ = of.decode(model, params, jax.device_get(encoded), *map(np.asarray, arguments))
    np.testing.assert_array_equal(hidden, again)


def test_the_sums_of_batches_of_unequal_token_counts_add_up(tiny_model):
    def of_batch(examples):
        return loss_of(tiny_model.model, tiny_model.params, batch_of(examples))

    whole_loss, whole = of_batch(EXAMPLES)
    (loss_a, a), (loss_b, b) = (of_batch([example]) for example in EXAMPLES)
    assert (a.target_tokens, b.target_tokens) == (5, 1)
    added = jax.tree.map(jnp.add, a, b)
    np.testing.assert_allclose(added, whole, rtol=1e-5)
    np.testing.assert_allclose(added.loss, whole.loss, rtol=1e-5)
    assert (added.token_accuracy, added.exact_match) == (whole.token_accuracy, whole.exact_match)
    assert abs(float(loss_a + loss_b) / 2 - float(whole_loss)) > 1e-3  # the mean of means is not it


def test_a_loss_without_targets_is_zero_and_not_nan(tiny_model):
    batch = batch_of(EXAMPLES)
    none = batch._replace(target_mask=np.zeros_like(batch.target_mask))
    loss, metrics = loss_of(tiny_model.model, tiny_model.params, none)
    assert (loss, metrics.loss, metrics.token_accuracy, metrics.exact_match) == (0, 0, 0, 0)


@pytest.mark.parametrize("logits_at_once", [1, 64, 3 * 64, 64 * 64])
def test_scores_do_not_depend_on_how_many_logits_exist_at_once(
    tiny_model, monkeypatch, logits_at_once
):
    batch = batch_of(EXAMPLES, BatchShape(2, 5, 2, 4, 3))
    logits = logits_of(tiny_model.model, tiny_model.params, batch)
    rows = jax.nn.log_softmax(np.asarray(logits))
    expected = np.take_along_axis(np.asarray(rows), batch.targets[..., None], -1)[..., 0]
    expected = np.where(batch.target_mask, expected, 0).sum(-1)
    monkeypatch.setattr(prompt_in_decoder, "LOGITS_AT_ONCE", logits_at_once)
    found = prompt_in_decoder.target_log_probabilities(tiny_model.model, tiny_model.params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dropout_is_drawn_for_every_prompt_and_only_with_a_key(tiny_model):
    same = TokenizedExample("a", [5, 6, 7, 1], [[9, 10]] * 3, [[12, 1]] * 3)
    batch = batch_of([same])

    def logits(key):
        return logits_of(tiny_model.model, tiny_model.params, batch, dropout_key=key)

    still = logits(None)
    np.testing.assert_allclose(still[0, 0], still[0, 1], rtol=1e-5)
    dropped = logits(jax.random.key(0))
    assert not np.allclose(dropped[0, 0], dropped[0, 1])
    np.testing.assert_array_equal(dropped, logits(jax.random.key(0)))
    assert not np.allclose(dropped, logits(jax.random.key(1)))


def test_pie_puts_each_prompt_before_its_document():
    assert prompt_in_decoder.prompt_in_encoder(EXAMPLES) == [
        TokenizedExample("a", [9, 10, 5, 6, 7, 8, 1], [()], [[12, 13, 1]]),
        TokenizedExample("a", [11, 5, 6, 7, 8, 1], [()], [[14, 1]]),
        TokenizedExample("b", [16, 17, 18, 15, 1], [()], [[1]]),
    ]


def test_pie_leaves_the_first_special_tokens_in_front():
    """In example "b", nothing does."""
    documents = [pair.document for pair in prompt_in_decoder.prompt_in_encoder(EXAMPLES, [5, 6])]
    assert documents == [
        [5, 6, 9, 10, 7, 8, 1],
        [5, 6, 11, 7, 8, 1],
        [16, 17, 18, 15, 1],
    ]
