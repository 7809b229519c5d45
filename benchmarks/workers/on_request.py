"""In a worker's process: a unit of work, such as a training step, whenever the benchmark asks for one.

A line on standard input asks, a line of JSON on standard output answers; the first answer comes unasked and describes
the worker, and the end of the input ends it. Only the standard library is imported, since some workers live in other
environments.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Finished(Exception):
    """The benchmark wants no more."""


class Requests:
    """Made after a worker's imports: what they hold is no part of its memory."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print must not come between
        self._before = resident("VmRSS")
        self._started: float | None = None

    def answer(self, **values: Any) -> None:
        self._answers.write(json.dumps(values) + "\n")

    def wait(self) -> None:
        """Say that the last unit is done, if there was one, and wait to be asked for the next. Raises Finished."""
        if self._started is not None:
            self.answer(cpu=time.process_time() - self._started, memory=resident("VmHWM") - self._before)
        if not sys.stdin.readline():
            raise Finished
        self._started = time.process_time()


def resident(which: str) -> int:
    """Bytes of memory that this process has (VmRSS) or has had at most (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(which))
