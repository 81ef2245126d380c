"""The idea: one encoding per document, prompts by vmap, loss on targets alone."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.data.batching import Batch, BatchShape, collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.automata import Automata, Position
from pid_jax.decoding.compaction import Gather, gather_prompts
from pid_jax.decoding.decode import decode
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.prefill import prefill
from tests.helpers.compiled_programs import array_sizes
from tests.helpers.quick_compilation import compile_fully

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


@pytest.mark.optimised
def test_scoring_with_a_large_vocabulary_holds_few_logits_at_once():
    """One document and 60 prompts, mT5's vocabulary: all logits take 1.9 GB."""
    model = models.build(WIDE | {"model_type": "mt5", "vocab_size": 250_112})
    prompts, target_tokens = 60, 32

    def tokens(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)

    batch = Batch(*tokens(1, 64), *tokens(1, prompts, 8), *tokens(1, prompts, target_tokens))
    score = jax.jit(prompt_in_decoder.target_log_probabilities, static_argnums=0)
    lowered = score.lower(model, models.abstract_params(model), batch)
    assert max(array_sizes(lowered)) <= prompt_in_decoder.LOGITS_AT_ONCE
    temporaries = compile_fully(lowered).memory_analysis().temp_size_in_bytes
    print(f"temporaries: {temporaries / 1e6:.0f} MB")
    assert temporaries < 3 * 4 * prompt_in_decoder.LOGITS_AT_ONCE


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


DOCUMENTS, PROMPTS, DOCUMENT_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 3, 7, 41, 3, 4
GATHERED_PROMPTS = 5
WIDE = {
    "model_type": "t5",
    "vocab_size": 53,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}


_STACK = {
    "vocab_size": 53,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "sliding_window": 2,
    "sliding_window_pattern": 2,
}
MERGED = {"model_type": "t5gemma2", "encoder": {"text_config": _STACK}, "decoder": _STACK}
"""Two heads read the same keys, and one softmax is over a document and the tokens decoded."""
SHARED_KEYS = {"model_type": "t5gemma", "encoder": _STACK, "decoder": _STACK}


WIDE_BART = {
    "model_type": "bart",
    "vocab_size": 53,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def shapes_of(documents: int, prompts: int, architecture: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A model, its parameters for decoding, and documents and prompts, all of them only shapes."""
    model = models.build(architecture)
    params = jax.eval_shape(model.decoding_params, models.abstract_params(model))
    inputs = (
        jax.ShapeDtypeStruct((documents, DOCUMENT_TOKENS), jnp.int32),
        jax.ShapeDtypeStruct((documents, DOCUMENT_TOKENS), bool),
        jax.ShapeDtypeStruct((documents, prompts, PROMPT_TOKENS), jnp.int32),
        jax.ShapeDtypeStruct((documents, prompts, PROMPT_TOKENS), bool),
        jax.ShapeDtypeStruct((documents, prompts), bool),
    )
    inputs = (*inputs, jax.ShapeDtypeStruct((documents, prompts), jnp.int32))
    return model, params, inputs


def decoding_array_sizes(
    documents: int,
    prompts: int,
    gathered_prompts: int,
    search: dict[str, int],
    architecture: dict[str, Any] = WIDE,
) -> dict[str, list[int]]:
    """Element counts of every array in the four programs of decoding, fused ones included."""
    model, params, inputs = shapes_of(documents, prompts, architecture)
    encode = functools.partial(prompt_in_decoder.encode, model)
    encoded = jax.eval_shape(encode, params, *inputs[:2])
    options = GenerationOptions(**search).compiled(model.config, Automata())
    read_prompts = functools.partial(prefill, model, length=NEW_TOKENS)
    arguments = (params, encoded, *inputs[2:], Position(), None, options)
    state = jax.eval_shape(read_prompts, *arguments)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    steps = functools.partial(decode, model)
    gather = Gather(
        jax.ShapeDtypeStruct((documents,), jnp.int32),
        jax.ShapeDtypeStruct((documents, gathered_prompts), jnp.int32),
        jax.ShapeDtypeStruct((documents, gathered_prompts), bool),
    )
    state_and_limits = (params, encoded, state, options, number, (number, number))
    return {
        "encode": array_sizes(jax.jit(encode).lower(params, *inputs[:2])),
        "prefill": array_sizes(jax.jit(read_prompts).lower(*arguments)),
        "decode": array_sizes(jax.jit(steps).lower(*state_and_limits)),
        "gather": array_sizes(jax.jit(gather_prompts).lower(state, gather)),
    }


def compiled_loss_array_sizes(
    documents: int, prompts: int, architecture: dict[str, Any] = WIDE
) -> list[int]:
    """The same of a training step's loss and gradient."""
    model = models.build(architecture)

    def tokens(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)

    batch = Batch(
        *tokens(documents, DOCUMENT_TOKENS),
        *tokens(documents, prompts, PROMPT_TOKENS),
        *tokens(documents, prompts, NEW_TOKENS),
    )
    gradient = jax.grad(lambda params, batch: prompt_in_decoder.loss(model, params, batch)[0])
    return array_sizes(jax.jit(gradient).lower(models.abstract_params(model), batch))


@pytest.mark.optimised
def test_the_compiled_training_step_holds_no_array_of_a_document_per_prompt():
    per_prompt_documents = DOCUMENTS * PROMPTS * DOCUMENT_TOKENS * WIDE["d_model"]
    assert max(compiled_loss_array_sizes(DOCUMENTS, PROMPTS)) < per_prompt_documents
    assert max(compiled_loss_array_sizes(DOCUMENTS * PROMPTS, 1)) >= per_prompt_documents
    assert max(compiled_loss_array_sizes(DOCUMENTS, PROMPTS, MERGED)) < per_prompt_documents


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("architecture", "search"),
    [
        (WIDE, {}),
        (WIDE, {"num_beams": 4}),
        (WIDE, {"draft_tokens": 2, "draft_ngram": 2}),
        (WIDE_BART, {}),
    ],
    ids=["greedy", "beams", "drafts", "bart"],
)
def test_no_compiled_decoding_program_holds_an_array_of_a_document_per_prompt(architecture, search):
    # One document's encoding, or one layer's keys for it, has S * D = S * H * K elements.
    per_document = DOCUMENT_TOKENS * WIDE["d_model"]
    sizes = decoding_array_sizes(DOCUMENTS, PROMPTS, GATHERED_PROMPTS, search, architecture)
    assert max(sizes["encode"] + sizes["prefill"]) < DOCUMENTS * PROMPTS * per_document
    assert max(sizes["decode"]) < DOCUMENTS * PROMPTS * per_document
    # Beams make the caches that it reads as large as five prompts' documents.
    assert max(sizes["gather"]) < DOCUMENTS * GATHERED_PROMPTS * per_document


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("architecture", "search"),
    [
        (SHARED_KEYS, {}),
        (MERGED, {}),
        (MERGED, {"num_beams": 2}),
        (MERGED, {"draft_tokens": 2, "draft_ngram": 2}),
    ],
    ids=["t5gemma", "merged", "merged-beams", "merged-drafts"],
)
def test_keys_that_heads_share_exist_once_per_document_too(architecture, search):
    """One layer's keys of a document have S * G * K elements, as many as an encoding has."""
    per_document = DOCUMENT_TOKENS * _STACK["num_key_value_heads"] * _STACK["head_dim"]
    sizes = decoding_array_sizes(DOCUMENTS, PROMPTS, GATHERED_PROMPTS, search, architecture)
    assert (
        max(sizes["encode"] + sizes["prefill"] + sizes["decode"])
        < DOCUMENTS * PROMPTS * per_document
    )


@pytest.mark.optimised
def test_the_same_search_finds_shared_keys():
    per_document = DOCUMENT_TOKENS * _STACK["num_key_value_heads"] * _STACK["head_dim"]
    sizes = decoding_array_sizes(DOCUMENTS * PROMPTS, 1, 1, {}, MERGED)
    assert (
        min(max(sizes["encode"] + sizes["prefill"]), max(sizes["decode"]))
        >= DOCUMENTS * PROMPTS * per_document
    )


@pytest.mark.optimised
def test_the_same_search_finds_the_documents_of_prompt_in_encoder():
    """There each prompt is a document."""
    per_document = DOCUMENT_TOKENS * WIDE["d_model"]
    sizes = decoding_array_sizes(DOCUMENTS * PROMPTS, 1, 1, {})
    assert max(sizes["encode"] + sizes["prefill"]) >= DOCUMENTS * PROMPTS * per_document
    assert max(sizes["decode"]) >= DOCUMENTS * PROMPTS * per_document
