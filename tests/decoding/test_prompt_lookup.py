"""Guesses read off the document, against a search written out."""

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.decoding.prompt_lookup import look_up

DOCUMENT, HISTORY, COUNT = 14, 9, 3
guess = functools.partial(
    jax.jit(look_up, static_argnames=("count", "ngram")), count=COUNT, ngram=3
)


def by_search(document: list[int], history: list[int], ngram: int) -> list[int]:
    """What follows the first of the longest matches of the history's end."""
    best, longest = [], 0
    for end in range(1, len(document)):
        for size in range(min(ngram, end, len(history)), longest, -1):
            if document[end - size : end] == history[-size:]:
                best, longest = document[end : end + COUNT], size
                break
    return best


rows = st.lists(st.integers(2, 4), max_size=DOCUMENT)


@settings(max_examples=200, deadline=None)
@given(
    documents=st.tuples(rows, rows),
    histories=st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.integers(2, 4), min_size=1, max_size=5)),
        min_size=4,
        max_size=4,
    ),
)
def test_drafts_follow_the_first_of_the_longest_matches(
    documents: tuple[list[int], list[int]], histories: list[tuple[int, list[int]]]
) -> None:
    """Left padding before a history and unwritten columns after it are never matched."""
    tokens = np.full((2, DOCUMENT), 3, np.int32)
    mask = np.zeros((2, DOCUMENT), bool)
    for row, document in enumerate(documents):
        tokens[row, : len(document)] = document
        mask[row, : len(document)] = True
    history = np.full((2, 2, HISTORY), 3, np.int32)
    history_mask = np.ones((2, 2, HISTORY), bool)
    length = np.zeros((2, 2), np.int32)
    for place, (padding, real) in zip(np.ndindex(2, 2), histories, strict=True):
        history[place][padding : padding + len(real)] = real
        history_mask[place][:padding] = False
        length[place] = padding + len(real)
    drafts, found = jax.device_get(guess(tokens, mask, history, history_mask, length))
    for place, (_, real) in zip(np.ndindex(2, 2), histories, strict=True):
        expected = by_search(documents[place[0]], real, ngram=3)
        assert drafts[place][: found[place]].tolist() == expected
