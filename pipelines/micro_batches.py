"""Batches that fit: one that runs out of memory is drawn again in halves, and later ones start that small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

# How torch says it in a plain RuntimeError: on the CPU (Windows, Linux), and on Apple's GPUs.
_PHRASES = ("not enough memory", "can't allocate memory", "out of memory")


class MicroBatches:
    """At most `size` images at a time; `size` halves whenever memory runs out, and stays."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, images: int, draw: Callable[[slice], T]) -> Iterator[T]:
        """What `draw` makes of one batch after the other, in order.

        Raises MemoryError if a single image does not fit.
        """
        begin = 0
        while begin < images:
            batch = slice(begin, min(begin + self.size, images))
            result = None
            try:
                result = (draw(batch),)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside of the except clause, where the traceback no longer holds the tensors of the failed batch.
            if result is not None:
                yield result[0]
                begin = batch.stop
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            tried = batch.stop - begin
            if tried == 1:
                raise MemoryError(
                    "there is not enough memory for a single image; choose a smaller height and width, bfloat16 for "
                    "dtype, or another device"
                )
            self.size = tried // 2


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)
