"""The batches of a run, in order, made in this process or in workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from cascade.training.interruption import leave_to_parent


def load(
    batch: Callable[[int, range], Any], parts: Sequence[range], first_step: int = 0, workers: int = 0
) -> Generator[Any, None, None]:
    """``batch(step, rows)`` for every one of ``parts`` of every step from the first on, without end.

    workers: processes that make them, which end when the iterator is closed.
    """
    wanted = ((step, rows) for step in itertools.count(first_step) for rows in parts)
    loader = DataLoader(
        _Batches(batch), batch_size=None, sampler=wanted, num_workers=workers, worker_init_fn=leave_to_parent
    )
    loaded: Any = iter(loader)
    try:
        yield from loaded
    finally:
        if workers:  # now: they ignore the SIGTERM with which Python would end them at exit, and it would wait forever
            loaded._shutdown_workers()


class _Batches(Dataset):
    """What a DataLoader's workers index: by (step, rows)."""

    def __init__(self, batch: Callable[[int, range], Any]) -> None:
        self.batch = batch

    def __getitem__(self, index: Any) -> Any:
        return self.batch(*index)
