"""Workers that take turns: whatever else the machine does, it falls on all of them alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent


class Worker:
    """A process of workers/ that does a unit of work when asked; or several that do it together, each told by its
    environment which one it is.

    said: how it described itself. wall, cpu: seconds of each unit, by the clock and of the processor. memory: bytes
    that it took at most, without its libraries.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        python: str | Path = sys.executable,
        environments: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS)}
        self._processes = [
            subprocess.Popen(
                [str(python), "-m", f"workers.{module}", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**shared, **own},
            )
            for own in environments
        ]
        self.said = self._answers()[0]
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.memory = 0

    def work(self) -> None:
        start = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = self._answers()
        self.wall.append(time.perf_counter() - start)
        self.cpu.append(sum(answer["cpu"] for answer in answers))
        self.memory = sum(answer["memory"] for answer in answers)

    def _answers(self) -> list[dict[str, Any]]:
        lines = [process.stdout.readline() for process in self._processes if process.stdout is not None]
        if not all(lines):
            self.close()
            sys.exit("a worker has died; what it said stands above")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        for process in self._processes:
            process.communicate()


def take_turns(workers: Iterable[Worker], turns: int, warmup: int) -> None:
    """Every worker does ``turns`` units, after some that are forgotten, and ends."""
    workers = list(workers)
    for turn in range(-warmup, turns):
        if turn == 0:
            for worker in workers:
                worker.wall.clear()
                worker.cpu.clear()
        for worker in workers:
            worker.work()
    for worker in workers:
        worker.close()


def ratio(others: Sequence[float], own: Sequence[float]) -> float:
    """The median of what others took to what one took, turn by turn."""
    return statistics.median(other / mine for other, mine in zip(others, own, strict=True))


def spread(values: Sequence[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
