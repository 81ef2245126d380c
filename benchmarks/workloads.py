"""What is timed: model sizes, and how many tokens of what are read and written."""

from dataclasses import dataclass
from typing import Any

import numpy as np

VOCABULARY = 32128

MODELS: dict[str, dict[str, Any]] = {
    "t5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-tiny": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16},
}
"""T5 1.0, as `config.json` has it; the tiny one is for trying the benchmark out."""


def model_config(name: str) -> dict[str, Any]:
    """The `config.json` of one of `MODELS`."""
    sizes = {"d_kv": 64, "num_decoder_layers": MODELS[name]["num_layers"], **MODELS[name]}
    return {"model_type": "t5", "vocab_size": VOCABULARY, "decoder_start_token_id": 0, **sizes}


@dataclass(frozen=True, slots=True)
class Workload:
    """Every document and every prompt has the same length; every answer is `new_tokens` long."""

    model: str
    documents: int
    document_tokens: int
    prompts: int
    """Asked of each document."""
    prompt_tokens: int
    new_tokens: int
    """The end token is barred, so that every engine takes as many steps."""


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
    """Token ids, the same for every engine."""

    documents: list[list[int]]
    prompts: list[list[list[int]]]
    """Per document, its prompts."""
    new_tokens: int


def questions(workload: Workload, seed: int) -> Questions:
    """Random token ids, none of them special."""
    random = np.random.default_rng(seed)
    documents = (workload.documents, workload.document_tokens)
    prompts = (workload.documents, workload.prompts, workload.prompt_tokens)
    return Questions(
        random.integers(3, VOCABULARY, documents).tolist(),
        random.integers(3, VOCABULARY, prompts).tolist(),
        workload.new_tokens,
    )
