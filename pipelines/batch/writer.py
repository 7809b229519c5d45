"""Images on their way to the disk: compressed and written in threads, while the next are drawn, then recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image
from tqdm import tqdm

from pipelines.batch.run import Lines, image_path, sha256
from pipelines.metadata import save_png

THREADS = 4
PATIENCE = 3  # batches of which nothing could be written, before giving up


@dataclass(frozen=True)
class Drawn:
    """Image number `image` of prompt number `prompt`, and how it was made."""

    prompt: int
    image: int
    picture: Image.Image
    metadata: Mapping[str, Any]


class Errors:
    """What goes wrong, on stderr and in a file of JSON lines; a line that the file has is not written again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()

    def report(self, **record: Any) -> None:
        """The record's "error" is the message, its other fields say where."""
        where = " ".join(f"{name} {value}" for name, value in record.items() if name != "error")
        tqdm.write(f"cascade: {where}: {record['error']}", file=sys.stderr)
        line = json.dumps(record)
        if line not in self._known:
            self._known.add(line)
            with suppress(OSError):  # on a full disk the line on stderr has to do
                lines = Lines(self.path)
                lines.append(record)
                lines.close()


class Writer:
    """Writes images into a run folder; used as a context manager, at whose end all are written.

    made: how many are written and in the manifest. Raises OSError when nothing of several batches could be written.
    """

    def __init__(self, folder: Path, manifest: Lines, errors: Errors, progress: tqdm) -> None:
        self.folder, self.manifest, self.errors, self.progress = folder, manifest, errors, progress
        self.made = 0
        self._pool = ThreadPoolExecutor(THREADS)
        self._pending: list[tuple[Drawn, Future[str | None]]] = []
        self._in_vain = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._settle()
        finally:
            self._pool.shutdown()

    def put(self, images: Iterable[Drawn]) -> None:
        """Take a batch, once the one before it is on the disk."""
        self._settle()
        if self._in_vain >= PATIENCE:
            raise OSError(
                f"nothing can be written to {self.folder}; free space or correct its permissions, then run it again"
            )
        self._pending = [(drawn, self._pool.submit(self._save, drawn)) for drawn in images]

    def _save(self, drawn: Drawn) -> str | None:
        path = image_path(self.folder, drawn.prompt, drawn.image)
        save_png(drawn.picture, path, drawn.metadata)
        return sha256(path)

    def _settle(self) -> None:
        pending, self._pending = self._pending, []
        before = self.made
        for drawn, future in pending:
            where = {"prompt": drawn.prompt, "image": drawn.image}
            try:
                digest = future.result()
                file = image_path(self.folder, drawn.prompt, drawn.image).relative_to(self.folder).as_posix()
                self.manifest.append(where | {"seed": drawn.metadata["seed"], "file": file, "sha256": digest})
            except OSError as error:
                self.errors.report(**where, error=str(error))
                continue
            self.made += 1
            self.progress.update()
        if pending:
            self._in_vain = 0 if self.made > before else self._in_vain + 1
