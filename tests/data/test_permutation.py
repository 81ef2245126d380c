"""The order of an epoch, computed a window at a time."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.data.permutation import permuted


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 2**40))
def test_every_number_comes_once(size, seed, epoch):
    numbers = permuted(np.arange(size), size, [seed, epoch])
    assert np.array_equal(np.sort(numbers), np.arange(size))


@settings(deadline=None)
@given(size=st.integers(1, 2**40), start=st.integers(0, 2**40))
def test_a_window_needs_no_other(size, start):
    positions = (start + np.arange(7)) % size
    whole = permuted(positions, size, [1, 2])
    one_by_one = [permuted(positions[i : i + 1], size, [1, 2])[0] for i in range(7)]
    assert whole.tolist() == one_by_one
    assert ((whole >= 0) & (whole < size)).all()


def test_all_permutations_of_four_are_equally_likely():
    draws = 4800
    counts = Counter(tuple(permuted(np.arange(4), 4, [7, key])) for key in range(draws))
    assert len(counts) == 24
    # Chi-squared with 23 degrees of freedom is above 49.7 with probability 0.001.
    assert sum((count - draws / 24) ** 2 / (draws / 24) for count in counts.values()) < 49.7


def test_neighbours_are_anywhere_in_another_epoch():
    size, positions = 10_000, np.arange(10_000)
    first, second = (permuted(positions, size, [0, epoch]) for epoch in (1, 2))
    for numbers in (np.diff(first), first - second, first - positions):
        # |x - y| of two uniform numbers has the mean size / 3 and the deviation size / sqrt(18).
        assert abs(np.abs(numbers).mean() - size / 3) < 5 * size / np.sqrt(18 * size)
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 0.05
