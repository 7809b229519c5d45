"""A run folder: what a batch was asked for, what it has made, and what is missing.

    run.json          everything that determines the images
    prompts.jsonl     the prompts; prompt number i is line i, counted from 0
    images/           00012-3.png: image 3 of prompt 12
    manifest-0.jsonl  a line per finished image, appended by process 0
    errors.jsonl      what went wrong

An image counts as made when a manifest has a line with its file's SHA-256. Image k of prompt i has the flat number
i * images_per_prompt + k, and the seed of the run plus that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from pipelines.prompts import PromptRecord, read_prompts
from weights.store import atomic_write

FORMAT = 1
RUN, PROMPTS, IMAGES, ERRORS = "run.json", "prompts.jsonl", "images", "errors.jsonl"


@dataclass(frozen=True)
class Run:
    """A run folder that was read. settings: what determines the images. made: the flat numbers of those there are."""

    folder: Path
    settings: Mapping[str, Any]
    prompts: list[PromptRecord]
    made: frozenset[int]

    @property
    def images_per_prompt(self) -> int:
        return self.settings["images_per_prompt"]

    @cached_property
    def missing(self) -> list[int]:
        """The flat numbers of the images that are not there."""
        return [j for j in range(len(self.prompts) * self.images_per_prompt) if j not in self.made]

    def path(self, prompt: int, image: int) -> Path:
        """Where image number `image` of prompt number `prompt` lies."""
        return image_path(self.folder, prompt, image)

    def seed(self, prompt: int, image: int) -> int:
        return self.settings["seed"] + prompt * self.images_per_prompt + image

    def __iter__(self) -> Iterator[tuple[int, PromptRecord, list[Path]]]:
        """Number, record and images of each prompt; images that are missing are left out."""
        n = self.images_per_prompt
        for i, record in enumerate(self.prompts):
            yield i, record, [self.path(i, k) for k in range(n) if i * n + k in self.made]


def read_run(folder: str | Path, *, complete: bool = True, verify: bool = False) -> Run:
    """Read a run folder, while it is being made or after.

    complete: refuse a run that lacks images. verify: compare every file with its hash, rather than see if it is there.
    Raises ValueError or OSError naming what is missing or damaged, and the remedy.
    """
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise ValueError(f"no {RUN} in {folder}; expected a folder that `cascade batch` wrote")
    settings = _read_settings(folder)
    path = folder / PROMPTS
    if not path.is_file() or sha256(path) != settings["prompts"]["sha256"]:
        raise ValueError(f"{path} is missing or was changed; make the run again, in another folder")
    prompts = list(read_prompts(path).records)
    n = settings["images_per_prompt"]
    made = set()
    for (i, k), hashes in read_manifests(folder).items():
        file = image_path(folder, i, k)
        if i < len(prompts) and k < n and (sha256(file) in hashes if verify else file.is_file()):
            made.add(i * n + k)
    run = Run(folder, settings, prompts, frozenset(made))
    if complete and run.missing:
        i, k = divmod(run.missing[0], n)
        raise ValueError(
            f"{folder} lacks {len(run.missing)} of {len(prompts) * n} images, the first "
            f"{image_path(folder, i, k).name}; run the same `cascade batch` again to make them, or look into {ERRORS}"
        )
    return run


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / RUN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] == FORMAT:
            return record["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another folder") from None
    raise ValueError(f"{path} has format {record['format']!r} and this version reads {FORMAT}; update cascade-t2i")


def claim(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any], prompts: str) -> None:
    """Make a folder the run of these settings, or see that it is. Every process does so; all write the same.

    about: goes into run.json, too, but may differ. prompts: the content of prompts.jsonl. Raises ValueError naming the
    settings that differ from those the folder was made with, OSError where nothing can be written.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; choose a folder")
    settings = json.loads(json.dumps(settings))  # as it is read back: tuples are lists
    # In this order: another process of the same launch writes run.json before its manifest.
    used = any(folder.glob("manifest-*.jsonl"))
    if (folder / RUN).is_file():
        differing = list(_differences(_read_settings(folder), settings))
        if differing:
            raise ValueError(
                f"{str(folder)!r} holds a run with other settings: {'; '.join(differing)}. Choose another folder, "
                "or the settings it was made with"
            )
    elif used:
        raise ValueError(
            f"{str(folder)!r} holds images of which no {RUN} says how they were made; choose another folder"
        )
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    if sha256(folder / PROMPTS) != settings["prompts"]["sha256"]:
        _write(folder / PROMPTS, prompts)
    if not (folder / RUN).is_file():
        _write(folder / RUN, json.dumps({"format": FORMAT, "settings": settings, **about}, indent=2) + "\n")
    for name in (PROMPTS, RUN):  # what a killed process left; one that is writing finds the file in place, see `_write`
        for path in folder.glob(f".{name}.*.saving"):
            path.unlink(missing_ok=True)


def _write(path: Path, content: str) -> None:
    try:
        atomic_write(path, content)
    except FileNotFoundError:
        # Another process has put its own in place, and removed this one's temporary file or taken it for its own.
        if not path.is_file():
            raise


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name} is {there!r} there and {here!r} here"


def image_path(folder: Path, prompt: int, image: int) -> Path:
    return folder / IMAGES / f"{prompt:05d}-{image}.png"


def sha256(path: Path) -> str | None:
    """Of a file's content; None where there is no file that can be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def read_manifests(folder: Path) -> dict[tuple[int, int], set[str]]:
    """The hashes written for each (prompt, image), of all processes. A line that a kill cut short does not count."""
    found: dict[tuple[int, int], set[str]] = {}
    for path in sorted(folder.glob("manifest-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                key, value = (record["prompt"], record["image"]), record["sha256"]
            except (ValueError, KeyError, TypeError):
                continue
            found.setdefault(key, set()).add(value)
    return found


class Lines:
    """A file of JSON lines that is appended to, each flushed as a whole.

    Where the file ends within a line, after a kill or on a full disk, the next one begins anew. exclusive: refuse a
    file that another process is appending to (on systems that have flock).
    """

    def __init__(self, path: Path, *, exclusive: bool = False) -> None:
        self._file: IO[bytes] = path.open("ab+", buffering=0)  # one write, one line, whoever else appends
        if exclusive:
            self._lock(path)
        self._broken = False
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            self._broken = self._file.read(1) != b"\n"

    def _lock(self, path: Path) -> None:
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"another process is writing {path}; wait for it, or end it, before starting the same run again"
            ) from None
        except OSError:
            pass  # a file system without locks

    def append(self, record: Mapping[str, Any]) -> None:
        """Raises OSError where it cannot be written."""
        line = b"\n" * self._broken + json.dumps(record).encode() + b"\n"
        self._broken = True
        if self._file.write(line) != len(line):
            raise OSError(f"only a part of a line was written to {self._file.name}; free space on the disk")
        self._broken = False

    def close(self) -> None:
        self._file.close()
