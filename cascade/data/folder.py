"""A folder of images with captions, laid out as `datasets` reads an imagefolder.

photos/metadata.jsonl    {"file_name": "a/1.jpg", "text": "a red car"} per line, "text" may be a list; or metadata.csv
photos/a/1.jpg           or without metadata: a/1.txt beside it, a caption a line
photos/train/...         a folder per split, if there are several
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cascade.data.decode import SUFFIXES
from cascade.data.source import Unusable, checked_captions, find_caption
from cascade.data.splits import find_split
from cascade.data.strings import PackedStrings

METADATA = ("metadata.csv", "metadata.jsonl")  # where both name an image, the second counts


class FolderSource:
    """The images under a folder, in the order of their paths; what begins with a dot is passed over.

    split: a subfolder; None is the training split where there is one, else all. An image is an item whether or not it
    has a caption, and so is a line of the metadata whether or not its image is there. Raises ValueError or OSError
    where nothing is found.
    """

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        self.folder = Path(folder)
        subfolders = [path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        subfolder = find_split([[name] for name in subfolders], split, self.folder)
        prefix = f"{subfolder}/" if subfolder else ""
        names, metadata = _walk(self.folder)
        stored: dict[str, str] = dict.fromkeys(names, "")
        for path in metadata:  # a folder comes before its subfolders
            stored.update(_read_metadata(self.folder, path))
        chosen = sorted(name for name in stored if name.startswith(prefix))
        if not chosen:
            raise ValueError(
                f"no images in {self.folder / prefix}; expected {', '.join(sorted(SUFFIXES))}, with metadata.jsonl, "
                "metadata.csv, or a .txt beside each"
            )
        self._names = PackedStrings(chosen)
        self._captions = PackedStrings(stored[name] for name in chosen)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def captions(self, index: int) -> list[str]:
        if stored := self._captions[index]:
            return checked_captions(json.loads(stored))
        path = self.folder / Path(self._names[index]).with_suffix(".txt")
        try:
            return checked_captions(path.read_text(encoding="utf-8-sig").splitlines())
        except FileNotFoundError:
            raise Unusable(f"no caption: no {path.name} beside it, and no line of a metadata file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable(f"no caption: {path.name} cannot be read: {error}") from None

    def image(self, index: int) -> bytes:
        try:
            return (self.folder / self._names[index]).read_bytes()
        except OSError as error:
            raise Unusable(f"the file cannot be read: {error.strerror}") from None


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """The images and the metadata files under a folder, as relative POSIX paths."""
    images, metadata = [], []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(root).relative_to(folder).as_posix()
        for name in files:
            path = posixpath.normpath(f"{relative}/{name}")
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                images.append(path)
        metadata += [posixpath.normpath(f"{relative}/{name}") for name in METADATA if name in files]
    return images, metadata


def _read_metadata(folder: Path, relative: str) -> Iterator[tuple[str, str]]:
    """(path of an image, its caption or captions as JSON); lines that say neither are warned about."""
    path = folder / relative
    bad = []
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    for line, row in rows:
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            bad.append(f"line {line}: {row if isinstance(row, str) else 'no file_name'}")
            continue
        image = posixpath.normpath(posixpath.join(posixpath.dirname(relative), name.replace("\\", "/")))
        if image.startswith(("../", "/")) or not _is_path(image):
            bad.append(f"line {line}: {name!r} names no file in the folder")
            continue
        yield image, json.dumps(find_caption(row))
    if bad:
        warnings.warn(
            f"{path}: {len(bad)} lines cannot be read, and count for nothing; the first is {bad[0]}", stacklevel=2
        )


def _is_path(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, its object, or why there is none)."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, f"no JSON: {error}"


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            try:
                yield reader.line_num + 1, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, str(error)
