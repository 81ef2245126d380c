"""Whether two engines chose the same tokens, and if not, how close a call it was."""

from typing import Any

from benchmarks.engines import Answers
from benchmarks.workloads import Questions
from pid_jax import PidModel

PAIRS = (
    ("pid_jax-pie", "transformers-pie"),
    ("pid_jax-pie", "ctranslate2"),
    ("pid_jax-pie", "ctranslate2-int8"),
    ("pid_jax-pid", "transformers-pid"),
)
"""Engines that are asked the same, the first by this project."""
NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats between two tokens that rounding alone may exchange."""
EXAMINED = 256
"""Divergences whose gap is computed: more than any workload has answers."""


def compare(ours: Answers, theirs: Answers) -> dict[str, Any]:
    """Shares of equal tokens and of equal answers, and where the others part.

    After its first difference an answer goes its own way, so `equal_tokens` counts tokens up
    to there only. `divergences` lists `[document, prompt, step]`.
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
    """At the first `EXAMINED` divergences, log p of our token less log p of theirs, in nats.

    Both follow the tokens that were chosen alike; near 0 is a tie that rounding decides.
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
