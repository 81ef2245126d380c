"""Which stream of a mixture has a step."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.data.mixing import Turns, mixed
from pid_jax.errors import UserError

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@settings(deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 2**32), steps=st.integers(0, 2**40))
def test_shares_of_any_number_of_steps_are_those_of_the_weights(weights, seed, steps):
    counts = Turns(weights, seed).counts(steps)
    assert sum(counts) == steps
    for count, weight in zip(counts, weights, strict=True):
        # The last term: shares are rounded to 40 bits.
        assert abs(count - steps * weight / sum(weights)) <= len(weights) + steps * 2**-38


@settings(deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 2**32), first=st.integers(0, 2**40))
def test_each_step_is_the_next_of_one_stream(weights, seed, first):
    turns = Turns(weights, seed)
    numbers = turns.counts(first)
    for step in range(first, first + 30):
        stream, number = turns.of(step)
        assert number == numbers[stream]
        numbers[stream] += 1


def test_shares_are_exact_on_average_over_seeds():
    weights, seeds = (5.0, 2.0, 1.0), 4000
    for steps in (1, 3, 10):
        mean = np.mean([Turns(weights, seed).counts(steps) for seed in range(seeds)], axis=0)
        # A count of a few steps deviates by at most 1: its mean over 4000 seeds by 0.008.
        np.testing.assert_allclose(mean, steps * np.array(weights) / 8, atol=0.04)


def test_equal_weights_take_turns():
    turns = Turns([1.0, 1.0], seed=0)
    streams = [turns.of(step).stream for step in range(10)]
    assert all(a != b for a, b in itertools.pairwise(streams))


def test_a_mixture_of_one_is_that_stream():
    stream = mixed([lambda n: ("only", n)], Turns([3.0], seed=5))
    assert [stream(step) for step in (0, 1, 2**35)] == [("only", 0), ("only", 1), ("only", 2**35)]


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0], [float("inf")], [float("nan")]])
def test_weights_must_be_numbers_above_0(weights):
    with pytest.raises(UserError, match="weights are numbers above 0"):
        Turns(weights, 0)
