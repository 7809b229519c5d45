"""One process at a time trains in a folder: two would delete each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While open, no other process can lock the folder; the system ends that with the process, however it ends.

    Raises ValueError naming the one that has it. Where the file system knows no locks, nothing is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers would inherit and hold on to
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by {file.read() or 'another process'}: end that, or choose another folder"
            ) from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
