"""Contact sheets: what the models drew for the first prompts of each category, none left out or chosen."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.batch.run import Run
    from pipelines.evaluation.scores import ImageScore

SIDE, QUALITY = 160, 82  # of a thumbnail: pixels, JPEG
MOST_IMAGES = 8  # of a prompt: as many as Imagen's raters saw

Verdicts = Mapping[tuple[int, int], "ImageScore"]  # of (prompt, image): right or wrong


def sheet(runs: Mapping[str, Run], numbers: Sequence[int], verdicts: Mapping[str, Verdicts], prompts: int) -> str:
    """The first of a category's prompts: a row of images per model."""
    return "".join(_prompt(runs, number, verdicts) for number in numbers[:prompts])


def _prompt(runs: Mapping[str, Run], number: int, verdicts: Mapping[str, Verdicts]) -> str:
    caption = next(iter(runs.values())).prompts[number].prompt
    rows = []
    for name, run in runs.items():
        shown = min(MOST_IMAGES, run.images_per_prompt)
        images = "".join(
            _image(run.path(number, k), f"{name}: {caption}", verdicts.get(name, {}).get((number, k)))
            for k in range(shown)
        )
        rows.append(f'<div style="--images:{shown}"><p>{escape(name)}</p><div class="images">{images}</div></div>')
    return (
        f'<article class="prompt"><h4><span>{number}</span> {escape(caption)}</h4>'
        f'<div class="models">{"".join(rows)}</div></article>'
    )


def _image(path: Path, text: str, verdict: ImageScore | None) -> str:
    mark = ""
    if verdict is not None:
        said = "right" if verdict.score else "wrong"
        text += f" ({said}: {', '.join(verdict.wrong)})" if verdict.wrong else f" ({said})"
        mark = f' class="{said}"'
    return f'<img{mark} src="{thumbnail(path)}" alt="{escape(text)}" title="{escape(text)}" loading="lazy">'


def thumbnail(path: Path) -> str:
    """A picture as a data URI of at most SIDE pixels."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
