"""Random transformers models of every T5 variant, and what transformers says of a prompt."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

torch.set_num_threads(1)  # these models are too small for more

SIZES = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "T5 1.0 (relu, tied)": {"class": "T5"},
    "T5 1.1 (gated-gelu, untied)": {"class": "T5", "feed_forward_proj": "gated-gelu", "untied": 1},
    "T5 1.1 (gated-gelu, tied, unscaled)": {
        "class": "T5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "Flan-T5 (gated-gelu, untied, d_kv * heads != d_model)": {
        "class": "T5",
        "feed_forward_proj": "gated-gelu",
        "num_heads": 6,
        "untied": 1,
    },
    "mT5 (gated-gelu, untied)": {"class": "MT5", "untied": 1},
    "ByT5 (gated-gelu, untied, deep encoder)": {
        "class": "T5",
        "feed_forward_proj": "gated-gelu",
        "num_layers": 4,
        "num_decoder_layers": 2,
        "vocab_size": 384,
        "untied": 1,
    },
    "T5 with a deep decoder": {"class": "T5", "num_decoder_layers": 3, "seed": 3},
    "T5 with few buckets and a short reach": {
        "class": "T5",
        "seed": 3,  # another than 0 where of that no output ends early
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "layer_norm_epsilon": 1e-3,
    },
    "T5 with gated-silu": {"class": "T5", "feed_forward_proj": "gated-silu"},
    "UMT5 (a bias in every layer, tied)": {"class": "UMT5"},
    "UMT5 (a bias in every layer, untied)": {"class": "UMT5", "num_decoder_layers": 3, "untied": 1},
}


def make(variant: str, directory: Path) -> Any:
    """A random model of this variant, saved to `directory` as published checkpoints are."""
    options = {**SIZES, **VARIANTS[variant]}
    name = options.pop("class")
    untied = options.pop("untied", False)
    torch.manual_seed(options.pop("seed", 0))
    config = (
        getattr(transformers, f"{name}Config")(**options, tie_word_embeddings=not untied)
        if "tie_word_embeddings" not in options
        else getattr(transformers, f"{name}Config")(**options)
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start alike: make them differ
            parameter.add_(0.1 * torch.randn_like(parameter))
    if not untied:
        with torch.no_grad():
            _resemble_all(model.shared.weight)
        model.save_pretrained(directory)
        return model
    # transformers 5 ties by force and writes one tensor: an untied checkpoint is written by hand.
    torch.nn.init.normal_(model.shared.weight)
    tensors = {k: v for k, v in model.state_dict().items() if "embed_tokens" not in k}
    tensors["lm_head.weight"] = _resemble_all(torch.randn_like(model.shared.weight) * 0.3)
    config.save_pretrained(directory)
    config_file = directory / "config.json"
    text = config_file.read_text()
    assert '"tie_word_embeddings": true' in text
    config_file.write_text(
        text.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    tensors = {k: v.clone().contiguous() for k, v in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return getattr(transformers, f"{name}ForConditionalGeneration").from_pretrained(directory)


def _resemble_all(output_embedding: torch.Tensor) -> torch.Tensor:
    """Adds to the end token's row the others', so that some outputs end early and some late."""
    output_embedding[1] += 0.2 * output_embedding[2:].sum(0)
    return output_embedding


@torch.no_grad()
def logits(model: Any, document: list[int], decoder_input: list[int]) -> torch.Tensor:
    """Float32 logits `[L, V]` after each decoder input token, which begin with the start token."""
    return model(
        input_ids=torch.tensor([document]), decoder_input_ids=torch.tensor([decoder_input])
    ).logits[0]


def log_probability(model: Any, document: list[int], prompt: list[int], target: list[int]) -> float:
    """log p(target | document, prompt in the decoder)."""
    rows = logits(model, document, [0, *prompt, *target[:-1]])[len(prompt) :].log_softmax(-1)
    return float(sum(row[token] for row, token in zip(rows, target, strict=True)))


def broadcast_pid(
    model: Any, document: list[int], prompts: list[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Greedy tokens of several prompts of one document from transformers' own `generate`.

    One encoder output is broadcast over left-padded prompts; the end token is left out.
    """
    encoder_outputs = model.get_encoder()(input_ids=torch.tensor([document]))
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(prompt) + 1) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(p)) + [1] * (len(p) + 1) for p in prompts]
    out = model.generate(
        encoder_outputs=encoder_outputs,
        decoder_input_ids=torch.tensor(padded),
        decoder_attention_mask=torch.tensor(mask),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=False,  # its cache fails where encoder and decoder differ in depth
    )
    return [_until_end(row[longest + 1 :].tolist()) for row in out]


def greedy(model: Any, document: list[int], prompt: list[int], max_new_tokens: int) -> list[int]:
    """Greedy tokens from transformers' `generate`, one prompt at a time."""
    out = model.generate(
        input_ids=torch.tensor([document]),
        decoder_input_ids=torch.tensor([[0, *prompt]]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=False,
    )
    return _until_end(out[0, len(prompt) + 1 :].tolist())


def beam_search(
    model: Any, document: list[int], prompt: list[int], num_beams: int, **options: Any
) -> list[tuple[list[int], float]]:
    """All outputs of transformers' beam search, the best first: tokens until the end token, and
    the sum of their log-probabilities, the end token's included."""
    out = model.generate(
        input_ids=torch.tensor([document]),
        attention_mask=torch.ones(1, len(document), dtype=torch.long),
        decoder_input_ids=torch.tensor([[0, *prompt]]),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=False,
        **options,
    )
    lengths = (out.beam_indices >= 0).sum(-1)
    totals = out.sequences_scores * lengths ** options.get("length_penalty", 1.0)
    rows = out.sequences[:, 1 + len(prompt) :].tolist()
    return [(_until_end(row), total) for row, total in zip(rows, totals.tolist(), strict=True)]


def _until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(1)] if 1 in tokens else tokens
