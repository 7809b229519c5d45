"""Generated images judged by eye, from which the detector learns: other ones than those that it is tried by."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.drawing import read_images
from cascade.data.toybox.description import COLOURS, COUNTS, Description
from cascade.data.toybox.nouns import NOUNS
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.detector.data import FIELDS, to_bytes
from pipelines.evaluation.detector.lessons import LABELS, read_lessons, write_lessons
from pipelines.evaluation.detector.network import GRID, SEEN, SIZE
from pipelines.evaluation.detector.training import LESSONS

# Of the first to the last thing of a relation: the field that rises, or falls.
ALONG = {"left": ("x", 1), "front": ("z", -1), "on": ("y", -1)}


def teach(eye: Path) -> None:
    """Add images of a run folder to docs/quality/lessons.

    eye: lines of JSON in that folder, of "file", "prompt", "expected" (its scene, as in
    pipelines/evaluation/toybox.jsonl) and "right": whether every thing in it is at a glance what was asked for,
    materials aside; where the prompt asks for different things, true, or a list with true or false for each of them in
    the order of the expected scene (from the left, from the front, from the top). Images whose things the present
    detector does not even find are left out.
    """
    labels = [json.loads(line) for line in (LESSONS / LABELS).read_text().splitlines()] if LESSONS.exists() else []
    pixels = list(read_lessons(LESSONS).pixels) if labels else []
    detector = Detector.from_pretrained()
    for line in eye.read_text().splitlines():
        record = json.loads(line)
        asked, right = Description.from_json(json.dumps(record["expected"])), record["right"]
        if asked.relation is not None:
            right = [True] * len(asked.looks) if right is True else right
            if not isinstance(right, list) or len(right) != len(asked.looks):
                raise SystemExit(f"{record['file']}: right is {right}; expected true, or one for each thing asked for")
        elif not isinstance(right, bool):
            raise SystemExit(f"{record['file']}: right is {right}; expected true or false for things of one kind")
        picture = F.avg_pool2d(read_images([eye.parent / record["file"]]), SIZE // SEEN)
        things = things_in(detector, picture)
        if asked.relation is not None:
            axis, sign = ALONG[asked.relation]
            things.sort(key=lambda thing: sign * thing[FIELDS.index(axis)])
        whole = right if isinstance(right, list) else [right] * len(things)
        complete = len(things) == len(asked.looks) * asked.count
        if complete if any(whole) else 0 < len(things) <= max(COUNTS.values()):
            if complete:
                for thing, look, good in zip(things, asked.looks * asked.count, whole, strict=True):
                    if good:
                        thing[:2] = list(NOUNS).index(look.noun), list(COLOURS).index(look.colour)
            pixels.append(to_bytes(picture)[0])
            labels.append({"prompt": record["prompt"], "right": right if any(whole) else False, "things": things})
    write_lessons(LESSONS, np.stack(pixels), labels)
    print(f"{len(labels)} lessons in {LESSONS}")


def things_in(detector: Detector, picture: Tensor) -> list[list[float]]:
    """FIELDS but the form, of everything found in a picture 1 3 SEEN SEEN."""
    seen = detector.see(picture)
    nouns, colours = (seen.at[name].argmax(dim=1).tolist() for name in ("noun", "colour"))
    rest = torch.cat([seen.at["place"], seen.at["log_bulk"], seen.heart * (2 / GRID) - 1], dim=1)
    rows = [[round(value, 3) for value in row] for row in rest.tolist()]
    return [[noun, colour, *row] for noun, colour, row in zip(nouns, colours, rows, strict=True)]
