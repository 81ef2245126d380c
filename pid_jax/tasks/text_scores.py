"""Metrics of predicted texts by name: built in, or a user's own function."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from pid_jax.errors import UserError
from pid_jax.metrics.rouge import Tokenizer, rouge
from pid_jax.metrics.squad import token_f1
from pid_jax.tasks.imported import imported


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions equal to their reference, without white space at the ends."""
    pairs = zip(predictions, references, strict=True)
    return sum(predicted.strip() == gold.strip() for predicted, gold in pairs) / len(references)


def f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean token F1 in [0, 1], by the rules of SQuAD."""
    return sum(map(token_f1, predictions, references)) / len(references)


def rouge_tokenizer(name: str) -> Tokenizer | None:
    """The function "module:function", or None for "". Raises UserError if it does not exist."""
    return imported(name, "tokenizer") if name else None


def rouge_policy(tokenizer: str) -> str:
    """Describes ROUGE with the tokenizer of this name, for a report."""
    tokens = f"tokens by {tokenizer}" if tokenizer else "words of the letters a to z and digits"
    return f"rouge_score, F-measure, no stemming, {tokens}"


_BUILT_IN: dict[str, tuple[Callable[..., Any], str]] = {
    "exact_match": (exact_match, "equal strings, white space at the ends aside"),
    "f1": (f1, "SQuAD: words in common, without case, punctuation and articles"),
    "rouge": (rouge, rouge_policy("")),
}


class TextScores:
    """Functions of predictions and references, two lists of equal length, one text per subtask.

    names: separated by commas: exact_match, f1, rouge (rouge1, rouge2, rougeL, rougeLsum), or
    "module:function" for your own. Such a function returns a number, reported under the
    function's name, or a dict from names to numbers. If it has the attribute `lower_is_better` with
    a true value, the lowest of its scores is best. tokenizer: "module:function", the tokenizer of
    ROUGE.

    Raises UserError for an unknown name, a module or function that cannot be imported, and a
    function that does not take two arguments.
    """

    def __init__(self, names: str, *, tokenizer: str = "") -> None:
        self._functions: dict[str, Callable[..., Any]] = {}
        self.policy: dict[str, str] = {}
        self.lower_is_better: frozenset[str] = frozenset()
        """Of the latest scores, those whose lowest value is best."""
        for name in [name.strip() for name in names.split(",")]:
            if name in _BUILT_IN:
                self._functions[name], self.policy[name] = _BUILT_IN[name]
            elif ":" in name:
                self._functions[name] = _own(name)
                self.policy[name.partition(":")[2]] = f"computed by {name}"
            else:
                raise UserError(
                    f"unknown metric {name!r}: choose from {', '.join(_BUILT_IN)}, or name a "
                    "function of your own, module:function"
                )

        tokens = rouge_tokenizer(tokenizer)
        if tokens is not None:
            if "rouge" not in self._functions:
                raise UserError(f"the tokenizer {tokenizer} needs rouge among the metrics")
            self._functions["rouge"] = functools.partial(rouge, tokenizer=tokens)
            self.policy["rouge"] = rouge_policy(tokenizer)

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """All scores by name. Raises UserError if a function returns other values."""
        scores: dict[str, float] = {}
        lower: set[str] = set()
        for name, function in self._functions.items():
            result = function(list(predictions), list(references))
            if not isinstance(result, Mapping):
                result = {name.rpartition(":")[2]: result}
            for key, value in result.items():
                if not isinstance(key, str) or not isinstance(value, Real):
                    raise UserError(
                        f"metric {name} must return a number, or a dict from names to numbers; "
                        f"it returned {value!r} for {key!r}"
                    )
                if not math.isfinite(value):
                    raise UserError(f"metric {name} returned {value} for {key!r}: not finite")
                if key in scores:
                    raise UserError(f"metric {name}: another score is called {key!r}")
                scores[key] = float(value)
                if getattr(function, "lower_is_better", False):
                    lower.add(key)
        self.lower_is_better = frozenset(lower)
        return scores


def _own(name: str) -> Callable[..., Any]:
    function = imported(name, "metric")
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise UserError(
            f"metric {name}: it must take two lists, predictions and references ({error})"
        ) from error
    except ValueError:  # some functions written in C have no signature
        pass
    return function
