"""Sample grids: what a stage draws at fixed prompts and noise, so that two grids differ by training alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cascade.randomness import Draws
from cascade.stage import Stage
from conditioning.lowres import downsample, upsample
from conditioning.text import TextEmbedding

SMALLEST, GAP = 64, 2  # of a sheet, in px: the side of its pictures, and what is between them


@torch.no_grad()
def draw(
    stage: Stage,
    prompts: Sequence[str],
    text: TextEmbedding | None,
    null: TextEmbedding | None = None,
    *,
    truth: Tensor | None = None,
    steps: int = 16,
) -> Tensor:
    """A picture per prompt, from seeds 0, 1, ...; (R B) 3 H W in [-1, 1].

    text: of the prompts; null: one row for no text, None for zeros. truth: B 3 H W in [-1, 1], which a super-resolution
    stage gets reduced; the result then is its input (bicubic), output and truth, in this order.
    """
    config, count = stage.config, len(prompts)
    size, low_res = config.resolution, None
    if config.low_resolution is not None:
        assert truth is not None, "super-resolution enlarges something"
        truth = truth.to(stage.device)
        size = (truth.shape[-2], truth.shape[-1])
        low_res = downsample(truth, (round(size[0] / stage.scale[0]), round(size[1] / stage.scale[1])))
    if text is not None:
        text = text.to(stage.device)
        null = TextEmbedding.null(1, text.width, padding=text.padding) if null is None else null
        null = null.to(stage.device, text.tokens.dtype).repeat_interleave(count)
    sampling = config.sampling.override(steps=steps)
    run = stage.sample(Draws(range(count), 0), size, text=text, null=null, low_res=low_res, sampling=sampling)
    images = deque(run, maxlen=1)[0].z
    return images if low_res is None or truth is None else torch.cat([upsample(low_res, size), images, truth])


def save_sheet(images: Tensor, path: Path, columns: int) -> None:
    """B 3 H W in [-1, 1] as one PNG, row by row, with white between them; small ones enlarged, pixel by pixel."""
    times = -(-SMALLEST // min(images.shape[-2:]))
    images = images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    images = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=1.0)
    columns = min(columns, len(images))
    rest = -len(images) % columns
    filled = torch.cat([images, images.new_ones(rest, *images.shape[1:])])
    rows = filled.unflatten(0, (-1, columns))  # R K C H W
    page = rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (R H) (K W) C
    page = page[:-GAP, :-GAP]
    pixels = ((page.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.saving")
    Image.fromarray(pixels).save(fresh, "PNG")
    fresh.replace(path)
