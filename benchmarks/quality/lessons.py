"""Generated images judged by eye, from which the detector learns: other ones than those that it is tried by."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.drawing import expected, read_images
from cascade.data.toybox.description import COLOURS, COUNTS
from cascade.data.toybox.nouns import NOUNS
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.detector.data import FIELDS, to_bytes
from pipelines.evaluation.detector.lessons import LABELS, read_lessons, write_lessons
from pipelines.evaluation.detector.network import GRID, SEEN, SIZE, hearts
from pipelines.evaluation.detector.training import LESSONS
from pipelines.evaluation.suite import TOYBOX, read_suite

# Of the first to the last thing of a relation: the field that rises, or falls.
ALONG = {"left": ("x", 1), "front": ("z", -1), "on": ("y", -1)}


def teach(eye: Path) -> None:
    """Add images of a run folder to docs/quality/lessons.

    eye: labels.jsonl in that folder, of "file", "prompt" and "right": whether every thing in it is at a glance what was
    asked for, materials aside; where the prompt asks for different things, true, or a list with true or false for each
    of them in the order of the expected scene (from the left, from the front, from the top). Images whose things the
    present detector does not even find are left out.
    """
    prompts = {prompt.prompt: prompt for prompt in read_suite(TOYBOX)}
    labels = [json.loads(line) for line in (LESSONS / LABELS).read_text().splitlines()] if LESSONS.exists() else []
    pixels = list(read_lessons(LESSONS).pixels) if labels else []
    detector = Detector.from_pretrained()
    for line in eye.read_text().splitlines():
        record = json.loads(line)
        prompt = prompts.get(record["prompt"])
        if prompt is None:
            raise SystemExit(f"{record['prompt']!r}: expected a prompt of the toybox suite")
        asked, right = expected(prompt), record["right"]
        if asked.relation is not None:
            right = [True] * len(asked.looks) if right is True else right
            if not isinstance(right, list) or len(right) != len(asked.looks):
                raise SystemExit(f"{record['file']}: right is {right}; expected true, or one for each thing asked for")
        elif not isinstance(right, bool):
            raise SystemExit(f"{record['file']}: right is {right}; expected true or false for things of one kind")
        picture = F.avg_pool2d(read_images([eye.parent / record["file"]]), SIZE // SEEN)
        things = seen(detector, picture)
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


@torch.no_grad()
def seen(detector: Detector, picture: Tensor) -> list[list[float]]:
    """FIELDS but the form, of everything found in a picture 1 3 SEEN SEEN."""
    maps = detector.what_and_where(picture)
    score, peak = hearts(maps)
    things = []
    for row, column in (peak & (score >= detector.config.threshold))[0].nonzero().tolist():
        at = {name: value[0, row, column] for name, value in maps.items()}
        heart = (torch.tensor([column + 0.5, row + 0.5]) + at["offset"]) * (2 / GRID) - 1
        noun, colour = int(at["noun"].argmax()), int(at["colour"].argmax())
        things.append([noun, colour, *torch.cat([at["place"], at["log_bulk"], heart]).round(decimals=3).tolist()])
    return things
