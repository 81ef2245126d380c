"""ROUGE, as the `rouge_score` package computes it."""

from collections.abc import Sequence

from pid_jax.errors import UserError

_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measure in [0, 1] of rouge1, rouge2, rougeL and rougeLsum, without stemming.

    rougeLsum takes the lines of a text as its sentences: put newlines where sentences end.

    Raises UserError if the two differ in length, are empty, or if `rouge_score` is not installed.

    Defined by Lin 2004 (ROUGE); Google's reimplementation is the reference of the benchmarks.
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

    scorer = RougeScorer(_KINDS, use_stemmer=False)
    totals = dict.fromkeys(_KINDS, 0.0)
    for prediction, reference in zip(predictions, references, strict=True):
        scores = scorer.score(target=reference, prediction=prediction)
        for kind in _KINDS:
            totals[kind] += scores[kind].fmeasure
    return {kind: total / len(references) for kind, total in totals.items()}
