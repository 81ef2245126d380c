"""Models with an adapter whose matrices are random, and batches for them."""

from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pid_jax import models
from pid_jax.data.batching import Batch, collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.models import lora
from pid_jax.models.lora import Lora
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.prompt_in_decoder import prompt_in_encoder

QUERIES_AND_VALUES = Lora(rank=4, alpha=10.0, targets=r"attention/(query|value)/kernel$")
ALL = Lora(rank=3, alpha=12.0, targets="kernel$")

DOCUMENTS = [[*range(2, 25)], [40, 41, 42, 43, 44, 45, 46, 1]]
PROMPTS = [[[3, 4, 5], [9]], [[60, 61, 62, 63, 64]]]
TARGETS = [[[5, 6, 1], [7, 1]], [[90, 91, 92, 93, 1]]]


def make(config: dict[str, Any], adapter: Lora, **options: Any) -> tuple[EncoderDecoder, Params]:
    """A model without dropout, and parameters that differ from their usual start.

    Norms and biases of zeros or ones would hide mistakes, and B of zeros any.
    """
    sizes = {"dropout_rate": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
    model = models.build({**config, **sizes}, lora=adapter, **options)
    random = np.random.default_rng(0)
    flat = flatten_dict(models.init_params(model, jax.random.key(0)))
    for path, leaf in flat.items():
        if path[-1] not in ("sinusoids",):
            flat[path] = leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32)
    return model, unflatten_dict(flat)


def without_adapter(params: Params) -> Params:
    """The parameters of the base model."""
    flat = flatten_dict(params)
    return unflatten_dict({p: leaf for p, leaf in flat.items() if not lora.is_adapter(p)})


def matrices(params: Params) -> dict[tuple[str, ...], np.ndarray]:
    """Those of the adapter, by path."""
    flat = flatten_dict(params)
    return {path: np.asarray(leaf) for path, leaf in flat.items() if lora.is_adapter(path)}


def batch(model: EncoderDecoder, method: str = "pid") -> Batch:
    """The documents with their prompts and targets."""
    examples = [
        TokenizedExample(str(i), *example)
        for i, example in enumerate(zip(DOCUMENTS, PROMPTS, TARGETS, strict=True))
    ]
    if method == "pie":
        examples = prompt_in_encoder(examples)
    return collate(
        examples,
        shape_of(examples),
        pad_token_id=model.config.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
