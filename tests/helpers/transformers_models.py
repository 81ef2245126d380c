"""What transformers says of a prompt, by its own models and its own `generate`."""

from typing import Any

import torch

torch.set_num_threads(1)  # the tests' models are too small for more


def resemble_all(output_embedding: torch.Tensor, end: int = 1) -> torch.Tensor:
    """Adds to the end token's row the others', so that some outputs end early and some late."""
    others = output_embedding.sum(0) - output_embedding[:2].sum(0)
    output_embedding[end] += 0.2 * others
    return output_embedding


@torch.no_grad()
def logits(model: Any, document: list[int], decoder_input: list[int]) -> torch.Tensor:
    """Float32 logits `[L, V]` after each decoder input token, the start token first."""
    return model(
        input_ids=torch.tensor([document]), decoder_input_ids=torch.tensor([decoder_input])
    ).logits[0]


def log_probability(model: Any, document: list[int], prompt: list[int], target: list[int]) -> float:
    """log p(target | document, prompt in the decoder)."""
    decoder_input = [start_of(model), *prompt, *target[:-1]]
    rows = logits(model, document, decoder_input)[len(prompt) :].log_softmax(-1)
    return float(sum(row[token] for row, token in zip(rows, target, strict=True)))


def broadcast_pid(
    model: Any, document: list[int], prompts: list[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Greedy tokens of several prompts of one document from transformers' own `generate`.

    One encoder output is broadcast over left-padded prompts; the end token is left out.
    """
    encoder_outputs = model.get_encoder()(input_ids=torch.tensor([document]))
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(prompt)) + [start_of(model), *prompt] for prompt in prompts]
    mask = [[0] * (longest - len(p)) + [1] * (len(p) + 1) for p in prompts]
    out = model.generate(
        encoder_outputs=encoder_outputs,
        decoder_input_ids=torch.tensor(padded),
        decoder_attention_mask=torch.tensor(mask),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=False,  # its cache fails where encoder and decoder differ in depth
    )
    return [_until_end(model, row[longest + 1 :].tolist()) for row in out]


def greedy(model: Any, document: list[int], prompt: list[int], max_new_tokens: int) -> list[int]:
    """Greedy tokens from transformers' `generate`, one prompt at a time."""
    out = model.generate(
        input_ids=torch.tensor([document]),
        decoder_input_ids=torch.tensor([[start_of(model), *prompt]]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=False,
    )
    return _until_end(model, out[0, len(prompt) + 1 :].tolist())


def answer(model: Any, document: list[int], prompt: list[int], **options: Any) -> list[int]:
    """The tokens of transformers' `generate`, whatever chooses them by default or by options."""
    out = model.generate(
        input_ids=torch.tensor([document]),
        attention_mask=torch.ones(1, len(document), dtype=torch.long),
        decoder_input_ids=torch.tensor([[start_of(model), *prompt]]),
        use_cache=False,
        **options,
    )
    return _until_end(model, out[0, len(prompt) + 1 :].tolist())


def beam_search(
    model: Any, document: list[int], prompt: list[int], num_beams: int, **options: Any
) -> list[tuple[list[int], float]]:
    """All outputs of transformers' beam search, the best first: tokens until the end token, and
    the sum of their log-probabilities, the end token's included."""
    out = model.generate(
        input_ids=torch.tensor([document]),
        attention_mask=torch.ones(1, len(document), dtype=torch.long),
        decoder_input_ids=torch.tensor([[start_of(model), *prompt]]),
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
    return [
        (_until_end(model, row), total) for row, total in zip(rows, totals.tolist(), strict=True)
    ]


def start_of(model: Any) -> int:
    """The first token of a decoder's input."""
    config = model.generation_config
    start: int | None = config.decoder_start_token_id
    return config.bos_token_id if start is None else start


def _until_end(model: Any, tokens: list[int]) -> list[int]:
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
