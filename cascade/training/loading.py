"""The batches of a run, in order, made in this process or in workers."""

from __future__ import annotations

import itertools
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from cascade.training.interruption import leave_to_parent


def load(
    batch: Callable[[int, range], Any],
    parts: Sequence[range],
    first_step: int = 0,
    workers: int = 0,
    *,
    pin_memory: bool = False,
) -> Generator[Any, None, None]:
    """``batch(step, rows)`` for every one of ``parts`` of every step from the first on, without end.

    workers: processes that make them, which end when the iterator is closed. pin_memory: for a GPU, a batch with a
    method of that name is put where it can be copied from while this process goes on.
    """
    wanted = ((step, rows) for step in itertools.count(first_step) for rows in parts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are cores: Run says so
        loader = DataLoader(
            _Batches(batch),
            batch_size=None,
            sampler=wanted,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=leave_to_parent,
        )
        loaded: Any = iter(loader)
    try:
        for made in loaded:
            if isinstance(made, _Failed):
                raise made.error from RuntimeError(f"in a worker:\n{made.where}")
            yield made
    finally:
        if workers:  # now: they ignore the SIGTERM with which Python would end them at exit, and it would wait forever
            loaded._shutdown_workers()


@dataclass(frozen=True)
class _Failed:
    """What a batch could not be made for: a worker hands it over, or torch would put its traceback into the message."""

    error: ValueError | OSError
    where: str


class _Batches(Dataset):
    """What a DataLoader's workers index: by (step, rows)."""

    def __init__(self, batch: Callable[[int, range], Any]) -> None:
        self.batch = batch

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.batch(*index)
        except (ValueError, OSError) as error:  # what a user can mend; other errors are torch's to report
            if get_worker_info() is None:
                raise
            return _Failed(error, traceback.format_exc())
