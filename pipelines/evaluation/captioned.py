"""Folders of images with captions, as a reference to compare drawn images with.

A folder is read as training reads it (cascade/data/folder.py), of several splits the training one; but what training
passes over stops an evaluation: a figure has to be about all of the images. COCO's layout is known here only:

captions_val2014.json   COCO's captions, here or in annotations/; the images lie anywhere below the folder
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade.data.decode import SUFFIXES
from cascade.data.folder import METADATA, FolderSource
from cascade.data.source import Unusable
from pipelines.prompts import PromptRecord

COCO = "captions_*.json"


@dataclass(frozen=True)
class Captioned:
    """images: each once. captions: one or more of an image; their "file_name" says of which."""

    images: list[Path]
    captions: list[PromptRecord]


def read_captioned(data: Path) -> Captioned:
    """data: a folder, or COCO's captions_*.json itself, whose images lie beside it or in a folder next to its own.

    Raises ValueError or OSError naming what is missing or damaged.
    """
    if data.is_file():
        root = data.parent.parent if data.parent.name == "annotations" else data.parent
        pairs = _read_coco(data, root)
    elif not data.is_dir():
        raise ValueError(f"no folder {data}; expected one of images with captions")
    elif not any((data / name).is_file() for name in METADATA) and (files := _find_coco(data)):
        if len(files) > 1:
            raise ValueError(f"{data} holds {', '.join(sorted(file.name for file in files))}; give the path of one")
        pairs = _read_coco(files[0], data)
    else:
        pairs = _read_folder(data)
    images, captions = [], []
    for path, texts in pairs:
        if not path.is_file():
            raise ValueError(f"no image {path}, which {data} has captions of")
        images.append(path)
        try:
            captions += [PromptRecord(text, extra={"file_name": path.name}) for text in texts]
        except (ValueError, TypeError) as error:
            raise ValueError(f"a caption of {path}: {error}") from None
    if not captions:
        raise ValueError(f"no captions in {data}; give a file of COCO's captions of images, or a folder with some")
    return Captioned(images, captions)


Pairs = Iterator[tuple[Path, list[str]]]  # an image and its captions


def _read_folder(folder: Path) -> Pairs:
    source = FolderSource(folder)
    for index in range(len(source)):
        path = folder / source.name(index)
        try:
            yield path, source.captions(index)
        except Unusable as error:
            raise ValueError(f"{path}: {error}; mend it, or take the image out of the folder") from None


def _find_coco(folder: Path) -> list[Path]:
    return [*folder.glob(COCO), *folder.glob(f"annotations/{COCO}")]


def _read_coco(path: Path, root: Path) -> Pairs:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names: Mapping[Any, str] = {image["id"]: image["file_name"] for image in record["images"]}
        captions: dict[Any, list[str]] = {number: [] for number in names}
        for annotation in record["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of COCO captions ({type(error).__name__}: {error})") from None
    places = {image.name: image for image in root.rglob("*") if image.suffix.lower() in SUFFIXES}
    for number, name in names.items():
        yield places[name] if name in places else root / name, captions[number]
