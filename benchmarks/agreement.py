"""Agreement of two engines: shares of equal tokens, and score gaps where they diverge."""

from typing import Any

from benchmarks.engines import Answers
from benchmarks.workloads import Questions
from pid_jax import PidModel

PAIRS = (
    ("pid_jax-pie", "transformers-pie"),
    ("pid_jax-pie", "transformers-pie-bfloat16"),
    ("pid_jax-pie", "ctranslate2"),
    ("pid_jax-pie", "ctranslate2-bfloat16"),
    ("pid_jax-pie", "ctranslate2-int8"),
    ("pid_jax-pid", "transformers-pid"),
    ("pid_jax-pid", "transformers-pid-bfloat16"),
)
"""Pairs of engines with the same inputs. The first of each is this project's."""
NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.1}
"""Maximum gap in nats between two tokens that rounding can exchange."""
EXAMINED = 256
"""Maximum number of divergences whose gap is computed. No workload has more answers."""


def compare(ours: Answers, theirs: Answers) -> dict[str, Any]:
    """Shares of equal tokens and of equal answers, and the positions of first differences.

    `equal_tokens` counts the tokens of an answer before its first difference, because later tokens
    depend on it. `divergences` lists `[document, prompt, step]`.
    """
    divergences = []
    total = equal = answers = 0
    for document, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        for prompt, (a, b) in enumerate(zip(left, right, strict=True)):
            step = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
            answers += 1
            total += len(a)
            equal += step
            if step < len(a):
                divergences.append([document, prompt, step])
    return {
        "equal_tokens": equal / total,
        "equal_answers": 1 - len(divergences) / answers,
        "divergences": divergences,
    }


def gaps(
    model: PidModel,
    method: Any,
    questions: Questions,
    ours: Answers,
    theirs: Answers,
    divergences: list[list[int]],
) -> list[float]:
    """log p of our token minus log p of theirs, in nats, at the first `EXAMINED` divergences.

    Both follow the same tokens. A gap near 0 is a tie that rounding decides.
    """
    examined = divergences[:EXAMINED]
    scores = model.score(
        [questions.documents[document] for document, _, _ in examined],
        [[questions.prompts[document][prompt]] * 2 for document, prompt, _ in examined],
        [
            [answers[document][prompt][: step + 1] for answers in (ours, theirs)]
            for document, prompt, step in examined
        ],
        method=method,
    )
    return [our_score - their_score for our_score, their_score in scores]
