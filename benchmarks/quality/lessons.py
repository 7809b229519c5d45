"""Generated images judged by eye, from which the detector learns: other ones than those that it is tried by."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.drawing import expected, read_images
from cascade.data.toybox.description import COLOURS, COUNTS, Look
from cascade.data.toybox.nouns import NOUNS
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.detector.data import to_bytes
from pipelines.evaluation.detector.lessons import LABELS, read_lessons, write_lessons
from pipelines.evaluation.detector.network import GRID, SEEN, SIZE, hearts
from pipelines.evaluation.detector.training import LESSONS
from pipelines.evaluation.suite import TOYBOX, read_suite


def teach(eye: Path) -> None:
    """Add images of a run folder to docs/quality/lessons.

    eye: labels.jsonl in that folder, of "file", "prompt" (of one kind of thing) and "right", true or false: whether
    every thing in it is at a glance what was asked for, materials aside. Images whose things the present detector does
    not even find are left out.
    """
    prompts = {prompt.prompt: prompt for prompt in read_suite(TOYBOX)}
    labels = [json.loads(line) for line in (LESSONS / LABELS).read_text().splitlines()] if LESSONS.exists() else []
    pixels = list(read_lessons(LESSONS).pixels) if labels else []
    detector = Detector.from_pretrained()
    for line in eye.read_text().splitlines():
        record = json.loads(line)
        prompt = prompts.get(record["prompt"])
        asked = prompt and expected(prompt)
        if asked is None or asked.relation is not None:
            raise SystemExit(f"{record['prompt']!r}: expected a prompt of the toybox suite for one kind of thing")
        picture = F.avg_pool2d(read_images([eye.parent / record["file"]]), SIZE // SEEN)
        things = seen(detector, picture, asked.looks[0] if record["right"] else None)
        if 0 < len(things) <= max(COUNTS.values()) and (not record["right"] or len(things) == asked.count):
            pixels.append(to_bytes(picture)[0])
            labels.append({"prompt": record["prompt"], "right": record["right"], "things": things})
    write_lessons(LESSONS, np.stack(pixels), labels)
    print(f"{len(labels)} lessons in {LESSONS}")


@torch.no_grad()
def seen(detector: Detector, picture: Tensor, look: Look | None) -> list[list[float]]:
    """FIELDS but the form, of everything found in a picture 1 3 SEEN SEEN; all things look like `look`, if known."""
    maps = detector.what_and_where(picture)
    score, peak = hearts(maps)
    things = []
    for row, column in (peak & (score >= detector.config.threshold))[0].nonzero().tolist():
        at = {name: value[0, row, column] for name, value in maps.items()}
        heart = (torch.tensor([column + 0.5, row + 0.5]) + at["offset"]) * (2 / GRID) - 1
        noun = list(NOUNS).index(look.noun) if look else int(at["noun"].argmax())
        colour = list(COLOURS).index(look.colour) if look else int(at["colour"].argmax())
        things.append([noun, colour, *torch.cat([at["place"], at["log_bulk"], heart]).round(decimals=3).tolist()])
    return things
