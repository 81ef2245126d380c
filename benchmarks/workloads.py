"""Workloads: model sizes and numbers of documents, prompts and tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np

VOCABULARY = 32128

MODELS: dict[str, dict[str, Any]] = {
    "t5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-tiny": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16},
}
"""T5 1.0, with the keys of `config.json`. The tiny model is for tests of the benchmark."""


def model_config(name: str) -> dict[str, Any]:
    """The `config.json` of one of `MODELS`."""
    sizes = {"d_kv": 64, "num_decoder_layers": MODELS[name]["num_layers"], **MODELS[name]}
    return {"model_type": "t5", "vocab_size": VOCABULARY, "decoder_start_token_id": 0, **sizes}


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes of a workload. All documents, all prompts and all answers have equal lengths."""

    model: str
    documents: int
    document_tokens: int
    prompts: int
    """Prompts per document."""
    prompt_tokens: int
    new_tokens: int
    """Length of an answer. The end token is suppressed, so engines take equal numbers of steps."""


WORKLOADS = {
    "dst": Workload("t5-base", 1, 512, 30, 8, 8),
    "note": Workload("t5-base", 1, 1536, 4, 8, 128),
    "qa": Workload("t5-base", 1, 256, 6, 16, 12),
    "dst_batched": Workload("t5-small", 8, 512, 30, 8, 8),
    "note_batched": Workload("t5-small", 8, 1536, 4, 8, 128),
    "qa_batched": Workload("t5-small", 8, 256, 6, 16, 12),
    "tiny": Workload("t5-tiny", 2, 24, 3, 4, 5),
}


@dataclass(frozen=True, slots=True)
class Questions:
    """The token ids of a workload, equal for all engines."""

    documents: list[list[int]]
    prompts: list[list[list[int]]]
    """The prompts of each document."""
    new_tokens: int


def questions(workload: Workload, seed: int) -> Questions:
    """Random token ids without special tokens."""
    random = np.random.default_rng(seed)
    documents = (workload.documents, workload.document_tokens)
    prompts = (workload.documents, workload.prompts, workload.prompt_tokens)
    return Questions(
        random.integers(3, VOCABULARY, documents).tolist(),
        random.integers(3, VOCABULARY, prompts).tolist(),
        workload.new_tokens,
    )
