"""ROUGE, as the `rouge_score` package computes it."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pid_jax.errors import UserError

log = logging.getLogger(__name__)

Tokenizer = Callable[[str], Iterable[str]]

_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_KNOWN = re.compile(r"[A-Za-z0-9]")


def rouge(
    predictions: Sequence[str], references: Sequence[str], *, tokenizer: Tokenizer | None = None
) -> dict[str, float]:
    """Mean F-measure in [0, 1] of rouge1, rouge2, rougeL and rougeLsum, without stemming.

    rougeLsum takes the lines of a text as its sentences: put newlines where sentences end.

    tokenizer: maps a text to its tokens. The default is that of `rouge_score`: runs of ASCII
    letters and digits. It drops all other characters, so equal texts in Thai, in Chinese or of
    emoji score 0. A warning reports texts that lose most or all of their characters. Pass `list`
    for a score over characters.

    Raises UserError if the arguments differ in length or are empty, if `tokenizer` does not return
    a list of tokens, and if `rouge_score` is not installed.

    Defined by Lin 2004 (ROUGE). The benchmarks use Google's reimplementation.
    """
    if len(predictions) != len(references):
        raise UserError(
            f"ROUGE needs one prediction for each reference: got {len(predictions)} predictions "
            f"for {len(references)} references"
        )
    if not references:
        raise UserError("ROUGE of no texts is undefined: the references are empty")
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise UserError(f"ROUGE needs the package {error.name}: pip install rouge-score") from error

    if tokenizer is None:
        _warn_of_dropped([*references, *predictions])
    scorer = RougeScorer(
        _KINDS, use_stemmer=False, tokenizer=None if tokenizer is None else _Own(tokenizer)
    )
    totals = dict.fromkeys(_KINDS, 0.0)
    for prediction, reference in zip(predictions, references, strict=True):
        scores = scorer.score(target=reference, prediction=prediction)
        for kind in _KINDS:
            totals[kind] += scores[kind].fmeasure
    return {kind: total / len(references) for kind, total in totals.items()}


@dataclass(frozen=True)
class _Own:
    """Adapts a function to the tokenizer interface of `rouge_score`."""

    function: Tokenizer

    def tokenize(self, text: str) -> list[str]:
        tokens = self.function(text)
        if isinstance(tokens, str) or not isinstance(tokens, Iterable):
            raise UserError(
                f"ROUGE's tokenizer must return a list of tokens; it returned {tokens!r} for "
                f"{text[:40]!r}"
            )
        return list(tokens)


def _warn_of_dropped(texts: Sequence[str]) -> None:
    dropped = [text for text in texts if _mostly_dropped(text)]
    if dropped:
        log.warning(
            "ROUGE: the tokenizer of rouge_score knows the letters a to z and digits only; it "
            "drops most of %d of %d texts, or all, such as %r: name a tokenizer that knows them",
            len(dropped), len(texts), dropped[0][:40],
        )  # fmt: skip


def _mostly_dropped(text: str) -> bool:
    known = len(_KNOWN.findall(text))
    if not known:
        return bool(text.strip())
    return not text.isascii() and 2 * known < len(_LETTER_OR_DIGIT.findall(text))
