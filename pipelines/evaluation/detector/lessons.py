"""Lessons: generated pictures of which people said whether every toy in them is one, at a glance.

No corruption of true renders fails as a generator does. The pictures lie in one sheet of SEEN px squares, COLUMNS in a
row; beside it a line of JSON for each, in the order of reading: its prompt, whether it is right (or which of its things
are, as a list), and its things, as far as the detector of that time saw them (FIELDS but the form; noun and colour are
the prompt's where a thing is right).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.data.toybox.description import COUNTS
from pipelines.evaluation.detector.data import FIELDS, Pictures
from pipelines.evaluation.detector.network import SEEN
from weights import atomic_write

SHEET, LABELS = "sheet.jpg", "labels.jsonl"
COLUMNS = 25


def read_lessons(folder: Path) -> Pictures:
    """The lessons in a folder: the form of a thing is 1 where it, or its whole picture, is right, else 0."""
    labels = [json.loads(line) for line in (folder / LABELS).read_text(encoding="utf-8").splitlines()]
    sheet = np.asarray(Image.open(folder / SHEET).convert("RGB"))
    rows = -(-len(labels) // COLUMNS)
    if sheet.shape != (rows * SEEN, COLUMNS * SEEN, 3):
        raise ValueError(f"{folder / SHEET} is of shape {sheet.shape}, not one of {len(labels)} pictures in {LABELS}")
    pixels = sheet.reshape(rows, SEEN, COLUMNS, SEEN, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, SEEN, SEEN)
    things = np.full((len(labels), max(COUNTS.values()), len(FIELDS)), np.nan, np.float32)
    for row, label in zip(things, labels, strict=True):
        right = label["right"] if isinstance(label["right"], list) else [label["right"]] * len(label["things"])
        for thing, seen, whole in zip(row, label["things"], right, strict=False):
            thing[:] = (*seen, float(whole))
    return Pictures(np.ascontiguousarray(pixels[: len(labels)]), things)


def write_lessons(folder: Path, pixels: NDArray[np.uint8], labels: Sequence[dict[str, object]]) -> None:
    """pixels: S 3 SEEN SEEN; labels: "prompt", "right" and "things" of each."""
    rows = -(-len(labels) // COLUMNS)
    squares = np.full((rows * COLUMNS, 3, SEEN, SEEN), 255, np.uint8)
    squares[: len(pixels)] = pixels
    sheet = squares.reshape(rows, COLUMNS, 3, SEEN, SEEN).transpose(0, 3, 1, 4, 2)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.reshape(rows * SEEN, COLUMNS * SEEN, 3)).save(folder / SHEET, quality=92)
    atomic_write(folder / LABELS, "".join(json.dumps(label) + "\n" for label in labels))
