"""Datasets of Hugging Face `datasets`, from the hub or from a folder that `save_to_disk` wrote."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.data.source import CAPTION_NAMES, Unusable, checked_captions
from cascade.data.splits import find_split

if TYPE_CHECKING:
    from PIL.Image import Image


class DatasetSource:
    """A `datasets.Dataset` with an image column and a caption column: text, or a list of texts.

    Columns not named are found: the first of images, and the first called text, caption or prompt. Raises ValueError
    naming the columns there are.
    """

    def __init__(self, dataset: Any, image_column: str | None = None, caption_column: str | None = None) -> None:
        datasets = _datasets()
        images = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        captions = [name for name in CAPTION_NAMES if name in dataset.features]
        self.image_column = _column("image", image_column, images, dataset)
        self.caption_column = _column("caption", caption_column, captions, dataset)
        as_files = dataset.cast_column(self.image_column, datasets.Image(decode=False))
        self._images = as_files.select_columns([self.image_column])
        self._captions = dataset.select_columns([self.caption_column])

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"row {index}"

    def captions(self, index: int) -> list[str]:
        return checked_captions(self._captions[index][self.caption_column])

    def image(self, index: int) -> bytes | Image:
        file = self._images[index][self.image_column]
        if file is None:
            raise Unusable("the row has no image")
        if file["bytes"] is not None:
            return file["bytes"]
        try:
            return Path(file["path"]).read_bytes()
        except OSError as error:
            raise Unusable(f"the file cannot be read: {error}") from None


def open_dataset(name: str, split: str | None = None) -> DatasetSource:
    """A hub id, or a folder that `save_to_disk` wrote; split: None is the training split where there is one.

    Raises ValueError or OSError saying what was looked for.
    """
    datasets = _datasets("" if Path(name).is_dir() else f"there is no folder {name!r}; ")
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name)
    except (OSError, ValueError) as error:  # what a wrong id, no network and gated data all end in
        raise ValueError(
            f"{name!r} is no folder, and `datasets` did not give it ({str(error).splitlines()[0]}). Check the "
            "spelling; without network, fetch it beforehand"
        ) from error
    if isinstance(found, datasets.Dataset):
        if split is not None:
            raise ValueError(f"{name!r} has no splits; leave out {split!r}")
        return DatasetSource(found)
    chosen = find_split([[part] for part in found], split, name)
    if chosen is None:
        if len(found) != 1:
            raise ValueError(f"{name!r} has the splits {', '.join(found)}; choose one")
        (chosen,) = found
    return DatasetSource(found[chosen])


def _datasets(why: str = "") -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            f"{why}a dataset of Hugging Face takes a package more: pip install 'cascade-t2i[data]'"
        ) from None


def _column(kind: str, given: str | None, found: list[str], dataset: Any) -> str:
    there = ", ".join(dataset.features)
    if given is not None and given not in dataset.features:
        raise ValueError(f"no {kind} column {given!r}; the columns are {there}")
    if given is None and not found:
        raise ValueError(f"no {kind} column was found among {there}; name it as {kind}_column")
    return given or found[0]
