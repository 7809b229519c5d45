"""A run that is told to stop: it ends its step, saves, and leaves with the status that says why."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """Raised once the run is saved, unless its last steps were bad; as an exit status it is 143 for SIGTERM and 130 for
    SIGINT. ``message`` is for the user.
    """

    def __init__(self, signum: int, step: int, *, saved: bool) -> None:
        super().__init__(128 + signum)
        kept = "saved; the same command goes on"
        if not saved:
            kept = "not saved, since its last steps were bad; the same command goes on from the checkpoint before them"
        self.message = f"stopped by {signal.Signals(signum).name} at step {step}, {kept}"


class Listening:
    """While open, the first SIGTERM or SIGINT is remembered in ``heard`` instead of ending the process; a second one
    ends it. Only Python's main thread can listen; elsewhere nothing is ever heard.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Listening:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._hear)
        return self

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        self.heard = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType] (it came from there)
        self._before.clear()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()


def leave_to_parent(worker: int) -> None:
    """For a worker process: a Ctrl-C reaches it too, and it has to go on until its parent has ended the step."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
