"""The attention kernels of decode steps, interpreted on a CPU, against plain attention."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models
from pid_jax.backends import decode_attention
from pid_jax.backends.decode_attention import attend_to_cache, attend_to_document
from pid_jax.backends.decode_kernels import DOCUMENT_TOKENS, SLOTS, Scoring
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST, KeyValue
from pid_jax.backends.settings import BY_PLATFORM
from pid_jax.inference.model import PidModel
from pid_jax.models.attention import Source, attend
from tests.helpers.tiny_families import VARIANTS

DOCUMENTS, PROMPTS, INPUT, EPSILON = 2, 3, 64, 1e-3


@pytest.fixture
def gpu_settings(monkeypatch):
    """A CPU with the settings of a GPU. It interprets the kernels."""
    monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["gpu"])


def softmax_of(scores, masks):
    weights = np.exp(scores - scores.max()) * masks
    return weights / weights.sum()


def capped(scores, scoring):
    scores = scores * scoring.scale
    return (
        scores
        if scoring.soft_cap is None
        else np.tanh(scores / scoring.soft_cap) * (scoring.soft_cap)
    )


CACHES: dict[str, dict[str, Any]] = {
    "one block": {"slots": 5},
    "three blocks, the last not full": {"slots": 2 * SLOTS + 5},
    "grouped heads": {"slots": 40, "heads": 6, "groups": 2},
    "heads that are no power of two": {"slots": 24, "heads": 12, "groups": 12},
    "bias": {"slots": SLOTS, "bias": True},
    "soft cap and scale": {"slots": 9, "scoring": Scoring(0.5, 1.5)},
    "RMSNorm": {"slots": 40, "heads": 6, "groups": 3, "scoring": Scoring(epsilon=EPSILON)},
    "all": {
        "slots": 70,
        "heads": 8,
        "groups": 4,
        "bias": True,
        "scoring": Scoring(0.5, 1.5, EPSILON),
    },
}


@pytest.mark.parametrize("case", CACHES)
def test_a_new_token_attends_to_its_cache_and_to_itself(case):
    options = {"heads": 4, "groups": 4, "bias": False, "scoring": Scoring(), **CACHES[case]}
    slots, heads, groups, scoring = (
        options[name] for name in ("slots", "heads", "groups", "scoring")
    )
    random = np.random.default_rng(slots)
    width, rows = 16, (DOCUMENTS, PROMPTS)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    joined = normal(*rows, heads + 2 * groups, width)
    key, value = normal(*rows, groups, slots, width), normal(*rows, groups, slots, width)
    mask = random.random((*rows, slots)) < 0.7
    x = normal(*rows, INPUT) if scoring.epsilon else None
    bias = jnp.asarray(normal(heads, slots + 1) * options["bias"])

    def of_prompt(joined, key, value, mask, x):
        past_bias, new_bias = bias[None, :, None, :-1], bias[None, :, None, -1:]
        if not options["bias"]:
            past_bias = new_bias = None
        past = KeyValue(key, value, ATTENDED_FIRST), mask[:, None], past_bias
        projections = (joined, joined, joined)
        first = (0, heads, heads + groups)
        return attend_to_cache(projections, first, past, None, new_bias, scoring, x, heads)

    over_prompts = jax.vmap(of_prompt, in_axes=1, out_axes=1)
    attended, present = over_prompts(*map(jnp.asarray, (joined, key, value, mask)), x)

    joined = joined.astype(np.float64)
    if x is not None:
        joined /= np.sqrt(np.square(x).mean(-1) + EPSILON)[..., None, None]
    queries = joined[:, :, :heads]
    keys, values = np.split(joined[:, :, heads:], 2, axis=2)
    np.testing.assert_allclose(present.key[:, :, :, 0], keys, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(present.value[:, :, :, 0], values, rtol=1e-5, atol=1e-5)
    for i, j, head in np.ndindex(*rows, heads):
        group = head // (heads // groups)
        all_keys = np.concatenate([key[i, j, group], keys[i, j, group][None]])
        all_values = np.concatenate([value[i, j, group], values[i, j, group][None]])
        scores = capped(all_keys @ queries[i, j, head], scoring) + bias[head]
        weights = softmax_of(scores, np.append(mask[i, j], True))
        np.testing.assert_allclose(
            attended[i, j, head], weights @ all_values, rtol=1e-4, atol=1e-5, err_msg=f"{i} {j}"
        )


DOCUMENT_CASES: dict[str, dict[str, Any]] = {
    "one block": {"tokens": 20},
    "blocks, the last not full": {"tokens": 2 * DOCUMENT_TOKENS + 7},
    "several programs for one head": {"tokens": 17 * DOCUMENT_TOKENS + 7},
    "more prompts than a block of queries": {"tokens": 30, "prompts": 70},
    "several queries of few prompts": {"tokens": 30, "length": 5},
    "several queries of many prompts": {"tokens": 30, "length": 2, "prompts": 17},
    "grouped heads": {"tokens": 30, "heads": 6, "groups": 2},
    "soft cap and scale": {"tokens": 30, "scoring": Scoring(0.5, 1.5)},
    "RMSNorm": {"tokens": 30, "length": 3, "scoring": Scoring(epsilon=EPSILON)},
}


@pytest.mark.parametrize("case", DOCUMENT_CASES)
def test_queries_attend_to_their_document(case):
    defaults = {"heads": 2, "groups": 2, "prompts": 3, "length": 1, "scoring": Scoring()}
    options = {**defaults, **DOCUMENT_CASES[case]}
    tokens, heads, groups, prompts, length, scoring = (
        options[name] for name in ("tokens", "heads", "groups", "prompts", "length", "scoring")
    )
    random = np.random.default_rng(tokens)
    width, rows = 16, (DOCUMENTS, prompts, length)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    query, x = normal(*rows, heads, width), normal(*rows, INPUT)
    key, value = normal(DOCUMENTS, groups, tokens, width), normal(DOCUMENTS, groups, tokens, width)
    mask = np.arange(tokens) < np.array([[tokens], [tokens - 13]])
    document = KeyValue(jnp.asarray(key), jnp.asarray(value), ATTENDED_FIRST)

    def of_prompt(query, x):
        inputs = x if scoring.epsilon else None
        return attend_to_document(query, document, jnp.asarray(mask), scoring, inputs)

    attended = jax.vmap(of_prompt, in_axes=1, out_axes=1)(jnp.asarray(query), jnp.asarray(x))

    queries = query.astype(np.float64)
    if scoring.epsilon:
        queries /= np.sqrt(np.square(x).mean(-1) + EPSILON)[..., None, None]
    for i, j, k, head in np.ndindex(*rows, heads):
        group = head // (heads // groups)
        scores = capped(key[i, group] @ queries[i, j, k, head], scoring)
        expected = softmax_of(scores, mask[i]) @ value[i, group]
        np.testing.assert_allclose(attended[i, j, k, head], expected, rtol=1e-4, atol=1e-5)


def sources(layout, documents_differ=False):
    """A document, or a cache and a new token, of three prompts."""
    random = np.random.default_rng(0)

    def pair(*batch, length):
        arrays = random.normal(size=(2, *batch, 4, length, 16)).astype(np.float32)
        return KeyValue(*(layout.from_heads(jnp.asarray(x)) for x in arrays), layout)

    batch = (PROMPTS, DOCUMENTS)
    query = jnp.asarray(random.normal(size=(*batch, 4, 1, 16)), jnp.float32)
    document = pair(*(batch if documents_differ else batch[1:]), length=30)
    mask = jnp.asarray(random.random((*batch, 1, 20)) < 0.7)
    return query, document, pair(*batch, length=20), mask, pair(*batch, length=1)


def attended(is_step, layout, documents_differ=False):
    query, document, past, past_mask, present = sources(layout, documents_differ)
    seen = jnp.ones((DOCUMENTS, 1, 1), bool)

    def of_prompt(query, document, past, past_mask, present):
        to_itself = [Source(past, past_mask), Source(present, seen)]
        to_document = [Source(document, jnp.arange(30)[None, None] < 25)]
        return [
            attend(query, each, 0.5, soft_cap=2.0, is_step=is_step)
            for each in (to_itself, to_document)
        ]

    axes = (0, 0 if documents_differ else None, 0, 0, 0)
    function = jax.vmap(of_prompt, in_axes=axes)
    inputs = query, document, past, past_mask, present
    return function(*inputs), str(jax.make_jaxpr(function)(*inputs))


def test_attend_runs_two_kernels_in_a_decode_step(gpu_settings):
    plain, without = attended(False, ATTENDED_FIRST)
    fused, program = attended(True, ATTENDED_FIRST)
    assert (without.count("pallas_call["), program.count("pallas_call[")) == (0, 2)
    for one, other in zip(plain, fused, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_prompts_with_documents_of_their_own_attend_without_the_kernel(gpu_settings):
    plain, _ = attended(False, ATTENDED_FIRST, documents_differ=True)
    fused, program = attended(True, ATTENDED_FIRST, documents_differ=True)
    assert program.count("pallas_call[") == 1
    for one, other in zip(plain, fused, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_another_layout_has_no_kernel(gpu_settings):
    assert "pallas_call[" not in attended(True, ATTENDED_LAST)[1]


def test_a_cpu_runs_no_kernel():
    assert "pallas_call[" not in attended(True, ATTENDED_FIRST)[1]


def test_a_wide_input_or_one_of_odd_width_has_a_norm_of_its_own():
    assert decode_attention.computes_norm(768)
    assert not decode_attention.computes_norm(4096)
    assert not decode_attention.computes_norm(80)


STACK = {"head_dim": 16, "hidden_size": 32}
BART = VARIANTS["bart"] | {"d_model": 64}
T5 = VARIANTS["t5"] | {"d_kv": 16, "d_model": 32}
MODELS = {
    "t5": T5,
    "t5, one head's norm too narrow for the kernel": T5 | {"d_model": 24},
    "umt5": T5 | {"model_type": "umt5"},
    "t5, heads too narrow for the kernels": VARIANTS["t5"],
    "longt5": VARIANTS["longt5, local"] | {"d_kv": 16, "d_model": 32},
    "bart": BART,
    "t5gemma": {
        "model_type": "t5gemma",
        "encoder": VARIANTS["t5gemma"]["encoder"] | STACK,
        "decoder": VARIANTS["t5gemma"]["decoder"] | STACK,
    },
    "t5gemma2": VARIANTS["t5gemma2"],
}
TOKENS = [[*range(2, 25)], [40, 41, 42, 43, 44, 45, 46, 1]]
QUESTIONS = [[[3, 4, 5], [9]], [[60, 61, 62, 63, 64]]]
TARGETS = [[[5, 6, 1], [7]], [[90, 91, 92, 93]]]


def random_params(model):
    """Numbers of a size that makes attention uneven and norms matter."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), jnp.float32),
        models.abstract_params(model),
    )


# All families ask the kernels for beams and drafts in the same way.
WITH_BEAMS_AND_DRAFTS = ["t5", "t5gemma"]


def results(model, *searches):
    """Tokens and scores of greedy decoding and of other searches, and scores of targets."""
    rows = [
        model.generate(TOKENS, QUESTIONS, max_new_tokens=7, min_new_tokens=3, **options)
        for options in ({"logprobs": 2}, *searches)
    ]
    outputs = [one for row in rows for generations in row for one in generations]
    scores = [one.score for one in outputs]
    scores += [score for row in model.score(TOKENS, QUESTIONS, TARGETS) for score in row]
    return [one.tokens for one in outputs], scores


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_same_with_the_settings_of_a_gpu(name, monkeypatch):
    searches = [{"num_beams": 2}, {"draft_tokens": 2}] if name in WITH_BEAMS_AND_DRAFTS else []
    model = models.build(MODELS[name])
    params = random_params(model)
    tokens, scores = results(PidModel(model, params), *searches)
    monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["gpu"])
    # Another model, equal to the first: JAX would find the traces with the settings of a CPU.
    jax.clear_caches()
    gpu_tokens, gpu_scores = results(PidModel(model, params), *searches)
    jax.clear_caches()
    assert gpu_tokens == tokens
    np.testing.assert_allclose(gpu_scores, scores, atol=2e-4)


def test_decoding_parameters_of_a_gpu_have_the_dtype_of_the_model_and_one_kernel(gpu_settings):
    model = models.build(T5, jnp.bfloat16)
    params = jax.eval_shape(model.decoding_params, models.abstract_params(model))
    layer = params["decoder"]["layers_0"]
    assert set(layer["self_attention"]) == {"query_key_value", "output"}
    assert layer["self_attention"]["query_key_value"]["kernel"].shape == (32, 3 * 4 * 16)
    assert "self_attention_norm" not in layer
    assert "cross_attention_norm" not in layer
    wide = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(params)
        if leaf.dtype == jnp.float32 and leaf.ndim == 2
    }
    assert all("relative_position_bias" in path for path in wide), wide


def test_parameters_on_several_devices_stay_as_they_are(monkeypatch):
    from pid_jax.backends.settings import backend_settings, compiling_for

    with compiling_for("gpu", devices=2):
        settings = backend_settings()
    assert not settings.decode_kernels
    assert settings == dataclasses.replace(
        BY_PLATFORM["gpu"], joined_projections=False, decode_kernels=False
    )
