"""Folders of images with captions, as a reference to compare drawn images with.

metadata.jsonl          {"file_name": "0001.png", "text": "a red car"} a line, as `datasets` reads an imagefolder;
                        "text" may be a list
captions_val2014.json   COCO's captions, here or in annotations/; the images lie anywhere below the folder
0001.txt                beside each 0001.png or .jpg: a caption a line
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.prompts import PromptRecord

METADATA, COCO = "metadata.jsonl", "captions_*.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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
    elif (data / METADATA).is_file():
        pairs = _read_metadata(data / METADATA)
    elif files := [*data.glob(COCO), *data.glob(f"annotations/{COCO}")]:
        if len(files) > 1:
            raise ValueError(f"{data} holds {', '.join(sorted(file.name for file in files))}; give the path of one")
        pairs = _read_coco(files[0], data)
    else:
        pairs = _read_texts(data)
    captions: dict[Path, list[PromptRecord]] = {}
    for path, texts in pairs:
        if not path.is_file():
            raise ValueError(f"no image {path}, which {data} has captions of")
        try:
            records = [PromptRecord(text, extra={"file_name": path.name}) for text in texts]
        except (ValueError, TypeError) as error:
            raise ValueError(f"a caption of {path}: {error}") from None
        captions.setdefault(path, []).extend(records)
    found = Captioned(list(captions), [record for records in captions.values() for record in records])
    if not found.captions:
        raise ValueError(f"no captions in {data}; expected {METADATA}, {COCO}, or a .txt beside each image")
    return found


Pairs = Iterator[tuple[Path, list[str]]]  # an image and its captions


def _read_metadata(path: Path) -> Pairs:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            file, text = record["file_name"], record["text"]
            image = path.parent / file
            if ".." in image.parts or not image.is_relative_to(path.parent):
                raise ValueError(f"{file!r} is outside of the folder")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected an object with file_name and text ({error})") from None
        yield image, text if isinstance(text, list) else [text]


def _read_coco(path: Path, root: Path) -> Pairs:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names: Mapping[Any, str] = {image["id"]: image["file_name"] for image in record["images"]}
        captions: dict[Any, list[str]] = {number: [] for number in names}
        for annotation in record["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of COCO captions ({type(error).__name__}: {error})") from None
    places = {image.name: image for image in _images(root)}
    for number, name in names.items():
        yield places[name] if name in places else root / name, captions[number]


def _read_texts(folder: Path) -> Pairs:
    for image in sorted(_images(folder)):
        beside = image.with_suffix(".txt")
        if not beside.is_file():
            raise ValueError(
                f"no {beside.name} beside {image}; expected one beside each image, or {METADATA} or {COCO} in {folder}"
            )
        yield image, [line for line in beside.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
