"""Micro-batches that fit: a batch that runs out of memory is drawn again in halves, and later ones start that small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

# How torch says it in a plain RuntimeError: on the CPU (Windows, Linux), and on Apple's GPUs.
_PHRASES = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)


class MicroBatches:
    """At most `size` items at a time; `size` halves whenever memory runs out, and stays."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, items: Sequence[int], draw: Callable[[Sequence[int]], T]) -> Iterator[tuple[Sequence[int], T]]:
        """Yield (some of the items, what `draw` makes of them) until all are done.

        Raises MemoryError if a single one does not fit.
        """
        begin = 0
        while begin < len(items):
            batch = items[begin : begin + self.size]
            result = None
            try:
                result = (draw(batch),)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the except clause, where the traceback no longer holds the tensors of the failed batch.
            if result is not None:
                yield batch, result[0]
                begin += len(batch)
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(batch) == 1:
                raise MemoryError(
                    "there is not enough memory for a single image; choose a smaller height and width, bfloat16 for "
                    "dtype, or another device"
                )
            self.size = len(batch) // 2
