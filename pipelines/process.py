"""One of several processes that share the work of a command, as torchrun, accelerate launch or MPI start them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

# torchrun and accelerate set the first of each row; MPI, which accelerate starts several CPU machines with, the others.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")


@dataclass(frozen=True)
class Process:
    """Number `rank` of `world` processes; `local_rank` is its number on its machine, and that of its GPU.

    The processes do not talk while they work, so none waits for another, and one that dies takes only its share along.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world} processes; expected 0 to {self.world - 1}")

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> Process:
        """What torchrun, accelerate launch or MPI say; the only process where none of them does."""
        environment = os.environ if environment is None else environment

        def first(names: tuple[str, ...], default: int) -> int:
            return next((int(environment[name]) for name in names if name in environment), default)

        return Process(first(RANK, 0), first(WORLD, 1), first(LOCAL_RANK, 0))

    def device(self, name: str | None = None) -> str:
        """The device named, else this process's GPU, else the CPU. Raises ValueError where a GPU is named and none is
        found."""
        import torch

        if name is not None and name.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device is {name}, and torch {torch.__version__} finds no GPU; leave the option out")
        if name in (None, "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name or "cpu"

    def wait_for_the_others(self) -> None:
        """Until all have come here. A launcher ends all processes when one exits with a status, so one that failed at
        some of its work stays until all have finished theirs."""
        if self.world == 1:
            return
        from datetime import timedelta

        from accelerate import PartialState

        try:
            state = PartialState(cpu=True, timeout=timedelta(days=30))
            state.wait_for_everyone()
            state.destroy_process_group()
        except RuntimeError as error:
            print(f"cascade: warning: another process did not finish ({str(error).splitlines()[0]})", file=sys.stderr)
