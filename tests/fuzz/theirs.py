"""What transformers' `generate` says of one prompt."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import transformers

from tests.fuzz.plain import Request, Tokens, stopped

SHARED = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_return_sequences",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)
FILLER = -1e6
"""Beams below are transformers' fillers: each starts at -1e9, which a length penalty divides."""


class Sequence(NamedTuple):
    tokens: list[int]
    """Without the end token or the stop sequence."""
    rank: float
    """What transformers calls `sequences_scores`; 0 where there are no beams."""


class Noise(transformers.LogitsProcessor):
    """Moves logits by about as much as another order of summation does."""

    def __init__(self, seed: int, size: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.size = size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.size * torch.randn(scores.shape, generator=self.generator)


OUTWEIGHED = {"min_new_tokens", "repetition_penalty", "no_repeat_ngram_size"}


def can_answer(request: Request) -> bool:
    """Lists of allowed outputs outweigh other rules and forced tokens here, not there."""
    config = request.pair.ours.config
    forces = config.forced_bos_token_id is not None or config.forced_eos_token_id is not None
    return request.allowed is None or not (forces or OUTWEIGHED & request.options.keys())


def masks(request: Request, outputs: Iterable[Tokens]) -> bool:
    """Whether an output holds padding: transformers' T5Gemma masks it even where it was chosen."""
    config = request.pair.theirs.config
    return config.model_type == "t5gemma" and any(
        config.pad_token_id in tokens for tokens in outputs
    )


@torch.no_grad()
def generate(request: Request, noise: Noise | None = None) -> list[Sequence]:
    """The outputs, the best first."""
    model = request.pair.theirs
    options = {name: request.options[name] for name in SHARED if name in request.options}
    beams = options.get("num_beams", 1) > 1
    document = request.document or [model.config.pad_token_id]  # an empty one is read as that
    length = len(request.start)

    def ends_here(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([stopped(request, row[length:].tolist()) > 0 for row in ids])

    def follows(batch: int, ids: torch.Tensor) -> list[int]:
        assert request.allowed is not None
        chosen = ids[length:].tolist()
        strings = [[*row, request.ends[0]] for row in request.allowed]
        rest = [row[len(chosen)] for row in strings if row[: len(chosen)] == chosen != row]
        return rest or [request.ends[0]]

    if request.allowed is not None:
        options["prefix_allowed_tokens_fn"] = follows
    out = model.generate(
        input_ids=torch.tensor([document]),
        attention_mask=torch.ones(1, len(document), dtype=torch.long),
        decoder_input_ids=torch.tensor([request.start]),
        do_sample=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=beams,
        logits_processor=transformers.LogitsProcessorList([] if noise is None else [noise]),
        stopping_criteria=transformers.StoppingCriteriaList(
            [ends_here] if request.options.get("stop") else []
        ),
        **options,
    )
    ranks = out.sequences_scores.tolist() if beams else [0.0]
    rows = out.sequences[:, length:].tolist()
    return [Sequence(_read(request, row), rank) for row, rank in zip(rows, ranks, strict=True)]


def _read(request: Request, row: list[int]) -> list[int]:
    """Up to the first end token or stop sequence, without it."""
    for count in range(1, len(row) + 1):
        if row[count - 1] in request.ends:
            return row[: count - 1]
        if cut := stopped(request, row[:count]):
            return row[: count - cut]
    return row


def quiet() -> None:
    """Silences transformers' advice and progress bars."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
