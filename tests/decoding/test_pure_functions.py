"""The pure functions in programs of a user: no `PidModel`, no training loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding import decode_greedily
from pid_jax.inference.model import PidModel

EXAMPLES = [
    TokenizedExample("a", [5, 6, 7, 8], [[2, 11], [3], []], [[5, 1], [8, 9, 1], [7, 1]]),
    TokenizedExample("b", [9, 4, 6], [[2], [3, 12, 4], [10]], [[9, 1], [6, 1], [1]]),
]
BATCH = collate(EXAMPLES, shape_of(EXAMPLES), pad_token_id=0, decoder_start_token_id=0)
encode = jax.jit(prompt_in_decoder.encode, static_argnums=0)
answer = jax.jit(decode_greedily, static_argnums=(0, 5))


def test_greedy_decoding_as_one_function_gives_what_generate_gives(varied_model: PidModel) -> None:
    model, params = varied_model.model, varied_model.params
    encoded = encode(model, params, BATCH.documents, BATCH.document_mask)
    outputs = jax.device_get(answer(model, params, encoded, BATCH.prompts, BATCH.prompt_mask, 9))
    expected = varied_model.generate(
        [one.document for one in EXAMPLES], [one.prompts for one in EXAMPLES], max_new_tokens=9
    )
    assert len(set(outputs.lengths.flat)) > 2, "all outputs have one length: little is tested"
    for index in np.ndindex(2, 3):
        tokens = outputs.tokens[index][: outputs.lengths[index]].tolist()
        if tokens[-1] == 1:
            tokens.pop()
        generation = expected[index[0]][index[1]]
        assert tokens == generation.tokens
        np.testing.assert_allclose(outputs.scores[index], generation.score, atol=1e-4)


def test_one_encoding_serves_other_prompts(varied_model: PidModel) -> None:
    """The program of the encoder does not depend on the shapes of prompts."""
    model, params = varied_model.model, varied_model.params
    compiled = encode.lower(model, params, BATCH.documents, BATCH.document_mask).compile()
    encoded = compiled(params, BATCH.documents, BATCH.document_mask)
    prompts = np.array([[[0, 6]], [[0, 7]]])
    outputs = answer(model, params, encoded, prompts, np.ones_like(prompts, bool), 4)
    expected = varied_model.generate(
        [one.document for one in EXAMPLES], [[[6]], [[7]]], max_new_tokens=4
    )
    for i, [generation] in enumerate(expected):
        assert outputs.tokens[i, 0].tolist()[: len(generation.tokens)] == generation.tokens


def test_a_loop_of_ones_own_learns_a_batch_by_heart(tiny_model: PidModel) -> None:
    model, params = tiny_model.model, tiny_model.params
    optimizer = optax.adam(2e-2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, batch):
        gradient, metrics = jax.grad(prompt_in_decoder.loss, argnums=1, has_aux=True)(
            model, params, batch
        )
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    params = jax.tree.map(jnp.array, params)
    opt_state = optimizer.init(params)
    for _ in range(80):
        params, opt_state, metrics = train_step(params, opt_state, BATCH)
    assert metrics.exact_match == 1
    encoded = encode(model, params, BATCH.documents, BATCH.document_mask)
    outputs = answer(model, params, encoded, BATCH.prompts, BATCH.prompt_mask, 3)
    learned = np.where(BATCH.target_mask, outputs.tokens[..., : BATCH.targets.shape[2]], 0)
    np.testing.assert_array_equal(learned, BATCH.targets)
