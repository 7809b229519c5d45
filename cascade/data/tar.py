"""Tar shards in WebDataset's layout, read at random.

The members of a sample share their path up to the first dot of the file's name: 000012.jpg with 000012.txt (a caption a
line) or 000012.json ({"text": ...}). Where each lies is found once per shard and kept beside it, in `.NAME.tar.index`,
a safetensors file; a shard that has changed since is indexed again.
"""

from __future__ import annotations

import json
import re
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cascade.data.decode import SUFFIXES
from cascade.data.source import Unusable, checked_captions, find_caption
from cascade.data.splits import find_split
from weights.store import atomic_write

FORMAT = 1
TEXT, JSON = ".txt", ".json"  # where a sample has both, the first counts
NOWHERE = -1
CUT_OFF = "(the rest)"  # the name of the item that stands for what a damaged shard has lost
END = bytes(512)  # the block after the last member


class TarSource:
    """The samples of one shard, or of all shards under a folder, in their order.

    split: shards with that word in their path ("train/0001.tar", "photos-train-0001.tar"); None is the training split
    where every shard belongs to one, else all. A sample is an item whether or not it has a caption. A shard that was
    cut off gives what is whole, and one item that says so. Raises ValueError or OSError where nothing is found.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        path = Path(path)
        if path.suffix != ".tar" and not path.is_dir():
            raise ValueError(f"{path} is compressed, so nothing can be read at random in it; unpack it to a .tar")
        self.root = path if path.is_dir() else path.parent
        shards = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        words = {shard: re.split(r"[\W_]+", shard.relative_to(self.root).as_posix()) for shard in shards}
        chosen = find_split(words.values(), split, path)
        self.shards = [shard for shard in shards if chosen is None or chosen in words[shard]]
        indices = [_index(shard) for shard in self.shards]
        self._shard = np.repeat(np.arange(len(indices)), [len(index["places"]) for index in indices])
        self._places = np.concatenate([index["places"] for index in indices])
        self._names = np.concatenate([index["names"] for index in indices])
        self._ends = np.concatenate([index["lengths"] for index in indices]).cumsum()
        for shard, index in zip(self.shards, indices, strict=True):
            places = index["places"]
            if len(places) and (places[-1] == NOWHERE).all():
                warnings.warn(
                    f"{shard} is cut off or damaged after {len(places) - 1} samples: those behind are lost",
                    stacklevel=2,
                )
        if not len(self):
            raise ValueError(f"no samples in {path}; expected images, each with a .txt or .json of the same name")

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        name = self._names[self._ends[index - 1] if index else 0 : self._ends[index]].tobytes()
        shard = self.shards[self._shard[index]].relative_to(self.root)
        return f"{shard.as_posix()}/{name.decode('utf-8', 'surrogateescape')}"

    def captions(self, index: int) -> list[str]:
        try:
            if (text := self._read(index, 1)) is not None:
                return checked_captions(text.decode("utf-8-sig").splitlines())
            if (record := self._read(index, 2)) is not None:
                return checked_captions(find_caption(json.loads(record)))
        except Unusable:
            raise
        except (ValueError, RecursionError) as error:
            raise Unusable(f"the caption cannot be read: {error}") from None
        if self._places[index, 0, 0] == NOWHERE:
            raise Unusable("the shard is cut off or damaged here; the samples after it are lost")
        raise Unusable(f"no caption: no {TEXT} or {JSON} of that name")

    def image(self, index: int) -> bytes:
        data = self._read(index, 0)
        if data is None:
            raise Unusable("no image of that name")
        return data

    def _read(self, index: int, column: int) -> bytes | None:
        """The image (column 0), text (1) or JSON (2) of an item; None where it has none."""
        offset, size = map(int, self._places[index, column])
        if offset == NOWHERE:
            return None
        try:
            with self.shards[self._shard[index]].open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise Unusable(f"the shard cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise Unusable("the shard has become shorter since it was opened")
        return data


def _index(shard: Path) -> Mapping[str, np.ndarray]:
    """places: (n, 3, 2), offset and size of each sample's image, text and JSON. names: the bytes of all names, lengths:
    how many each has. stamp: what the shard was when this was found."""
    stat = shard.stat()
    stamp = np.array([FORMAT, stat.st_size, stat.st_mtime_ns])
    path = shard.with_name(f".{shard.name}.index")
    try:
        index = load(path.read_bytes())
        if np.array_equal(index["stamp"], stamp):
            return index
    except (OSError, SafetensorError, KeyError):
        pass  # none yet, or no longer readable
    index = _find_members(shard, stat.st_size) | {"stamp": stamp}
    try:
        atomic_write(path, save(index))
    except OSError as error:
        warnings.warn(
            f"the index of {shard} cannot be kept, and will be made at every start: {error.strerror}", stacklevel=2
        )
    return index


def _find_members(shard: Path, size: int) -> dict[str, np.ndarray]:
    places: dict[str, np.ndarray] = {}
    whole = False
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                column = _column(member.name)
                if not member.isreg() or column is None or member.offset_data + member.size > size:
                    continue
                folder, _, file = member.name.rpartition("/")
                name = f"{folder}/{file.partition('.')[0]}".lstrip("./")
                place = places.setdefault(name, np.full((3, 2), NOWHERE))
                if place[column, 0] == NOWHERE:
                    place[column] = member.offset_data, member.size
            with shard.open("rb") as file:  # tarfile stops quietly at a header that it does not understand
                file.seek(tar.offset)
                whole = file.read(len(END)) == END
    except (tarfile.TarError, ValueError, EOFError):
        pass
    if not whole:
        places[CUT_OFF] = np.full((3, 2), NOWHERE)
    names = [name.encode("utf-8", "surrogateescape") for name in places]
    return {
        "places": np.array(list(places.values()), np.int64).reshape(-1, 3, 2),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "lengths": np.array([len(name) for name in names], np.int64),
    }


def _column(member: str) -> int | None:
    suffix = Path(member).suffix.lower()
    return 0 if suffix in SUFFIXES else {TEXT: 1, JSON: 2}.get(suffix)
