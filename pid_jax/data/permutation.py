"""A pseudorandom permutation whose values are computed one by one, in any order.

The order of an epoch of any size takes no memory and no time at the start.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

_ROUNDS = 96


def permuted(
    positions: Int[np.ndarray, " some"], size: int, key: Sequence[int]
) -> Int[np.ndarray, " some"]:
    """The numbers at these positions of a permutation of 0 to size - 1.

    key: numbers of at least 0 that choose the permutation. This is the swap-or-not shuffle (Hoang,
    Morris and Rogaway, An Enciphering Scheme Based on a Card Shuffle, 2012): each round pairs every
    number x with k - x modulo the size, and swaps the pairs of which a hash is odd.
    """
    random = np.random.default_rng(list(key))
    offsets = random.integers(size, size=_ROUNDS)
    salts = random.integers(2**64, size=_ROUNDS, dtype=np.uint64)
    numbers = positions.astype(np.int64)
    for offset, salt in zip(offsets, salts, strict=True):
        partners = offset - numbers
        partners[partners < 0] += size
        swapped = _is_odd(np.maximum(numbers, partners), salt)
        numbers = np.where(swapped, partners, numbers)
    return numbers


def _is_odd(numbers: Int[np.ndarray, " some"], salt: np.uint64) -> np.ndarray:
    """One bit of SplitMix64 (Steele, Lea and Flood, 2014) for each number."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed >> np.uint64(63) != 0
