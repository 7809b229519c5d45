"""The order of training: which item a sample shows.

Samples are numbered 0, 1, 2, ... without end; sample i is the (i mod N)-th of epoch i div N, and every epoch goes
through the N items in another order. Nothing is stored, so where a run stands is one integer, and the order knows
neither workers nor processes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

ROUNDS = 8  # each changes both halves; with 4, some orders of 5 items are clearly rarer than others
_64_BITS = 2**64 - 1


class Permutation:
    """A random permutation of 0 .. length - 1, chosen by ``keys``, in constant memory.

    A Feistel network over pairs (left, right) with left < a, right < b, ab >= length; what falls outside of the length
    is sent through again (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, sections 4 and 5).
    """

    def __init__(self, length: int, keys: np.ndarray) -> None:
        self.length = length
        self._a = math.isqrt(length - 1) + 1
        self._b = -(-length // self._a)
        self._keys = [int(key) for key in keys]  # two a round

    def __call__(self, i: int) -> int:
        while True:
            left, right = divmod(i, self._b)
            for k in range(0, len(self._keys), 2):
                left = (left + _mix(right ^ self._keys[k])) % self._a
                right = (right + _mix(left ^ self._keys[k + 1])) % self._b
            i = left * self._b + right
            if i < self.length:
                return i


def _mix(x: int) -> int:
    """Every bit of 64 depends on every bit of x (the finalizer of SplitMix64; Steele et al., 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return x ^ (x >> 31)


@lru_cache(maxsize=16)
def permutation(length: int, seed: int, epoch: int = 0) -> Permutation:
    """The order of an epoch. Raises ValueError for a length below 1."""
    if length < 1:
        raise ValueError(f"there are {length} items to put in order; expected at least one")
    keys = np.random.SeedSequence([seed, epoch], spawn_key=(0,)).generate_state(2 * ROUNDS, np.uint64)
    return Permutation(length, keys)


def item_of(sample: int, length: int, seed: int) -> int:
    """Which of ``length`` items sample number ``sample`` shows."""
    epoch, position = divmod(sample, length)
    return permutation(length, seed, epoch)(position)
