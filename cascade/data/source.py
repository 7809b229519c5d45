"""Where training examples come from: one map-style interface, whatever stands behind it."""

from functools import lru_cache
from typing import Protocol

import numpy as np
from torch import Tensor


class Source(Protocol):
    """Images with captions, by index."""

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        """B 3 H W float32 in [-1, 1], on the CPU; ``rng`` is for crops."""
        ...

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One caption each; ``rng`` chooses among paraphrases."""
        ...


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def data_order(seed: int, start: int, count: int, length: int) -> np.ndarray:
    """The source indices of the global examples start .. start + count - 1: every epoch a fresh permutation."""
    examples = range(start, start + count)
    return np.array([_epoch(seed, i // length, length)[i % length] for i in examples], dtype=np.int64)
