"""A checkpoint with a tokenizer, made in a second. It answers nonsense."""

from pathlib import Path

import jax

from pid_jax import models, tasks
from pid_jax.data.tokenizing import train_tokenizer
from pid_jax.inference.model import PidModel

ARCHITECTURE = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def make() -> PidModel:
    """Random weights; the vocabulary is that of the synthetic dialogues."""
    task = tasks.get("synthetic_dst", train_dialogues=30)
    texts = []
    for example in task.examples(None, "train"):
        texts.append(example.document)
        for subtask in example.subtasks:
            texts += [subtask.prompt, subtask.target or ""]
    tokenizer = train_tokenizer(texts, vocab_size=500)
    model = models.build({**ARCHITECTURE, "vocab_size": len(tokenizer)})
    return PidModel(model, models.init_params(model, jax.random.key(0)), tokenizer)


def write(directory: Path) -> Path:
    """Writes one in the Hugging Face layout."""
    make().save_pretrained(directory)
    return directory
