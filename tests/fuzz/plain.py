"""Greedy decoding by the simplest loop: one document, one prompt, no cache, rules in NumPy.

The rules are written from transformers' documentation and this package's docstrings, not from
`pid_jax.decoding`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pid_jax import prompt_in_decoder
from pid_jax.models.protocol import end_token_ids
from pid_jax.prompt_in_decoder import positions_of
from tests.fuzz.pairs import Pair

DOCUMENT_TOKENS, DECODER_TOKENS = 72, 24
"""Every case fits: one compiled program serves all cases of a model."""
TIE = 1e-4
"""Logits that differ by less may change their order with the order in which sums are made."""

Tokens = Sequence[int]


class Fault(Exception):
    """A difference that nothing explains."""


@functools.cache
def program(model: Any) -> Any:
    """All logits of one prompt of one document, padded to the sizes above."""

    @jax.jit
    def logits(params: Any, document: Any, document_mask: Any, tokens: Any, mask: Any) -> Any:
        encoded = prompt_in_decoder.encode(model, params, document, document_mask)
        slots = jnp.arange(tokens.shape[-1])[None]
        hidden, _ = prompt_in_decoder.decode(
            model, params, encoded, tokens, mask, positions_of(mask), slots
        )
        return model.apply({"params": params}, hidden, method="logits")[0, 0]

    return logits


def logits(pair: Pair, document: Tokens, decoder_input: Tokens) -> np.ndarray:
    """`[len(decoder_input), V]`."""

    def padded(tokens: Tokens, size: int) -> tuple[np.ndarray, np.ndarray]:
        row = np.zeros(size, np.int32)
        row[: len(tokens)] = tokens
        return row, np.arange(size) < len(tokens)

    row, row_mask = padded(document, DOCUMENT_TOKENS)
    tokens, mask = padded(decoder_input, DECODER_TOKENS)
    found = program(pair.ours.model)(
        pair.ours.params, row[None], row_mask[None], tokens[None, None], mask[None, None]
    )
    return np.asarray(found)[: len(decoder_input)]


class Request(NamedTuple):
    """A request for one prompt."""

    pair: Pair
    document: Tokens
    prompt: Tokens
    options: dict[str, Any]
    allowed: list[Tokens] | None

    @property
    def start(self) -> list[int]:
        """What the decoder reads first."""
        return [self.pair.ours.config.decoder_start_token_id, *self.prompt]

    @property
    def ends(self) -> tuple[int, ...]:
        return end_token_ids(self.pair.ours.config)


def ruled(request: Request, given: np.ndarray, chosen: Tokens) -> np.ndarray:
    """Logits after all rules, for the token after `chosen`."""
    options, config = request.options, request.pair.ours.config
    history = [*request.start, *chosen]
    scores = given.astype(np.float64)
    penalty = options.get("repetition_penalty", 1.0)
    for token in set(history):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    size = options.get("no_repeat_ngram_size", 0)
    if size:
        for i in range(len(history) - size + 1):
            if history[i : i + size - 1] == history[len(history) - size + 1 :]:
                scores[history[i + size - 1]] = -np.inf
        if scores.max() == -np.inf:
            scores = given.astype(np.float64)
    for word in options.get("bad_words_ids", ()):
        before = list(word[:-1])
        if len(before) <= len(history) and history[len(history) - len(before) :] == before:
            scores[word[-1]] = -np.inf
    if len(chosen) < options.get("min_new_tokens", 0):
        scores[list(request.ends)] = -np.inf
    forced_first = not chosen and not request.prompt and config.forced_bos_token_id is not None
    if forced_first:
        scores = _only(config.forced_bos_token_id, scores)
    if len(chosen) + 1 == options["max_new_tokens"] and config.forced_eos_token_id is not None:
        scores = _only(config.forced_eos_token_id, scores)
    scores[list(options.get("suppress_tokens", ()))] = -np.inf
    forces = config.forced_bos_token_id is not None and not request.prompt
    if len(chosen) == int(forces):
        scores[list(options.get("begin_suppress_tokens", ()))] = -np.inf
    if request.allowed is not None:
        following = sorted(
            {row[len(chosen)] for row in _strings(request) if _starts_with(row, chosen)}
        )
        inside = np.full_like(scores, -np.inf)
        inside[following] = scores[following]
        if inside.max() == -np.inf:  # the list outweighs all other rules
            inside[following] = given[following]
        scores = inside
    return scores


def _only(token: int, scores: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(scores)) == token, 0.0, -np.inf)


def _strings(request: Request) -> list[list[int]]:
    """The allowed outputs, with the end token, of at least `min_new_tokens`."""
    assert request.allowed is not None
    least = request.options.get("min_new_tokens", 0)
    return [[*row, request.ends[0]] for row in request.allowed if len(row) >= least]


def _starts_with(row: Tokens, start: Tokens) -> bool:
    return len(row) > len(start) and list(row[: len(start)]) == list(start)


def stopped(request: Request, chosen: Tokens) -> int:
    """The length of the longest stop sequence at the end; 0 without."""
    if request.allowed is not None:
        return 0
    ending = [
        len(stop)
        for stop in request.options.get("stop", ())
        if len(stop) <= len(chosen) and list(chosen[len(chosen) - len(stop) :]) == list(stop)
    ]
    return max(ending, default=0)


class Greedy(NamedTuple):
    tokens: list[int]
    """Without end token and stop sequence."""
    score: float
    ties: int


def greedy(request: Request, guide: Tokens) -> Greedy:
    """Decodes; where two tokens are equally likely and one is the guide's, takes that.

    Raises `Fault` where the guide's token is another than the likeliest.
    """
    chosen: list[int] = []
    following: list[int] = []
    rows = np.zeros((0, 0))
    score, ties = 0.0, 0
    while True:
        place = len(request.start) - 1 + len(chosen)
        if following[: len(chosen)] != chosen or place >= len(rows):
            following = (
                [*chosen, *guide[len(chosen) :]] if _starts_with(guide, chosen) else [*chosen]
            )
            rows = logits(request.pair, request.document, [*request.start, *following])
        scores = ruled(request, rows[place], chosen)
        token = int(scores.argmax())
        if _starts_with(guide, chosen) and (wanted := int(guide[len(chosen)])) != token:
            gap = scores[token] - scores[wanted]
            if not gap < TIE:
                raise Fault(
                    f"after {chosen} plain greedy takes {token}, generate {wanted}, whose logit "
                    f"is {gap:.2e} less"
                )
            token, ties = wanted, ties + 1
        elif not _starts_with(guide, chosen) and np.sort(scores)[-2] > scores[token] - TIE:
            ties += 1  # any of them may end it; compared by the caller
        chosen.append(token)
        score += log_probability(rows[place], token)
        if token in request.ends:
            return Greedy(chosen[:-1], score, ties)
        if (cut := stopped(request, chosen)) > 0:
            return Greedy(chosen[: len(chosen) - cut], score, ties)
        if len(chosen) == request.options["max_new_tokens"]:
            return Greedy(chosen, score, ties)


def log_probability(given: np.ndarray, token: int) -> float:
    given = given.astype(np.float64)
    most = given.max()
    return float(given[token] - most - np.log(np.exp(given - most).sum()))
