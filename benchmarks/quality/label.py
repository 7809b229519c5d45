"""Images to label by eye: drawn once, each with the scene it should show, before any judge sees them.

Right is what a stranger would call so who sees the image for a second and is asked what stands there: each thing asked
for, named with noun and colour, and nothing else; as many, of the sizes and materials and where the prompt says. A toy
may be wavy or lack a detail. It must not need the prompt to be recognized, nor flow into its neighbour.

Two label on their own ("eyes"); "right" is what both call so.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality.drawing import Setting, draw, expected
from benchmarks.quality.judge import LABELLED, LABELS
from pipelines.evaluation.suite import Prompt
from pipelines.images import from_tensor

# Mostly what the embedded model can do at least sometimes: a judge is not tried by images that are all wrong.
PROMPTS = {"colours": 60, "counting": 30, "sizes": 20, "materials": 15, "positional": 15, "stacks": 10}
FIRST_SEED = 300_000  # to be raised for another set: nothing that a detector learned from was drawn with these
SHEETS = Path("runs/quality/labelling")
COLUMNS, ROWS, CAPTION = 5, 5, 34  # of a sheet; the height of a caption in px


def prepare(setting: Setting) -> None:
    """Draw an image of each prompt into docs/quality/labelled, and sheets of them into runs/quality/labelling.

    labels.jsonl then waits for true or false in the place of every null.
    """
    labels = LABELLED / LABELS
    if labels.exists():
        raise SystemExit(f"{labels} is there already; delete it to begin anew")
    prompts = [p for category, count in PROMPTS.items() for p in replace(setting, prompts=count).suite(category)]
    LABELLED.mkdir(parents=True, exist_ok=True)
    images, lines = [], []
    for number, (prompt, own) in enumerate(
        zip(prompts, draw(setting.pipeline(), prompts, 1, first_seed=FIRST_SEED), strict=True)
    ):
        images += from_tensor(own, "pil")
        name = f"{number:03d}.jpg"
        images[-1].save(LABELLED / name, quality=92)
        record = {
            "file": name,
            "prompt": prompt.prompt,
            "expected": asdict(expected(prompt)),
            "eyes": [None, None],
            "right": None,
        }
        lines.append(json.dumps(record))
    labels.write_text("\n".join(lines) + "\n")
    draw_sheets(prompts, images)


def draw_sheets(prompts: list[Prompt], images: list[Image.Image]) -> None:
    """Numbered and captioned, COLUMNS x ROWS to a sheet."""
    SHEETS.mkdir(parents=True, exist_ok=True)
    width, height = images[0].size
    for first in range(0, len(images), COLUMNS * ROWS):
        sheet = Image.new("RGB", (COLUMNS * width, ROWS * (height + CAPTION)), "white")
        pen = ImageDraw.Draw(sheet)
        for place, number in enumerate(range(first, min(first + COLUMNS * ROWS, len(images)))):
            row, column = divmod(place, COLUMNS)
            left, top = column * width, row * (height + CAPTION)
            sheet.paste(images[number], (left, top + CAPTION))
            words = np.array_split(f"{number}: {prompts[number].prompt}".split(), 2)
            pen.multiline_text((left + 4, top + 3), "\n".join(" ".join(half) for half in words), fill="black")
        sheet.save(SHEETS / f"{first:03d}.png")
