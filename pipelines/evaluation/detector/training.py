"""Trains the toybox detector: `python -m pipelines.evaluation.detector.training --minutes 30`.

Run again, it goes on where it was. B batch, T things at most in a scene, H W cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.training.loop import Loop, LoopConfig
from cascade.training.schedule import Budget
from pipelines.evaluation.detector.corruptions import blur, coarsen, jpeg, noise
from pipelines.evaluation.detector.data import (
    CROWDED,
    CROWDED_SEED,
    FIELDS,
    ROOM,
    TRAINING_SEED,
    VALIDATION_SEED,
    Crops,
    Pictures,
    S,
    draw_crops,
    draw_pictures,
    shard,
    to_images,
)
from pipelines.evaluation.detector.network import (
    CROP,
    FOLDER,
    GRID,
    SEEN,
    Detector,
    DetectorConfig,
    Material,
    WhatAndWhere,
    hearts,
)

LOOP = LoopConfig(learning_rate=2e-3, warmup_steps=100, decay=0.5, ema_decay=0.998, checkpoint_minutes=2.0)
MATERIAL_SHARE = 0.2  # of the training time
NEAR = 1.5  # cells about a heart that learn to describe its thing


@dataclass(frozen=True)
class Spoiling:
    """Chances, and the largest amounts, of what spoils pictures; blur in pixels, JPEG's quality its lowest."""

    blur: tuple[float, float]
    noise: tuple[float, float]
    jpeg: tuple[float, int]
    coarse: tuple[float, int]
    light: float


# At 128 px a blur is half as wide as at 256 px, and noise half as strong. Textures must stay readable in the crops.
PICTURES = Spoiling(blur=(0.4, 1.3), noise=(0.5, 0.06), jpeg=(0.15, 40), coarse=(0.3, 64), light=0.06)
CROPS = Spoiling(blur=(0.5, 1.2), noise=(0.5, 0.06), jpeg=(0.25, 45), coarse=(0.0, CROP), light=0.06)


def spoil(images: Tensor, how: Spoiling, rng: np.random.Generator) -> Tensor:
    """B 3 H W in [-1, 1] -> the same, most of them a little worse."""
    light = torch.from_numpy(rng.uniform(-how.light, how.light, (3, len(images), 3, 1, 1))).float()
    contrast, brightness, tint = light[0, :, :1], light[1, :, :1], 0.3 * light[2]
    images = (images * (1 + contrast) + brightness + tint).clamp_(-1, 1)

    def some(chance: float, change: Callable[[Tensor], Tensor]) -> None:
        chosen = torch.from_numpy(rng.random(len(images)) < chance)
        if chosen.any():
            images[chosen] = change(images[chosen])

    def amounts(most: float, part: Tensor) -> Tensor:
        return torch.from_numpy(rng.uniform(0, most, len(part))).float()

    grain = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    some(how.coarse[0], lambda part: coarsen(part, how.coarse[1]))
    some(how.blur[0], lambda part: blur(part, amounts(how.blur[1], part)))
    some(how.noise[0], lambda part: noise(part, amounts(how.noise[1], part), grain))
    some(how.jpeg[0], lambda part: jpeg(part, rng.integers(how.jpeg[1], 96, len(part)).tolist()))
    return images


def clouds(count: int, rng: np.random.Generator) -> Tensor:
    """Pictures of nothing, count 3 SEEN SEEN: noise of any scale."""
    out = []
    for _ in range(count):
        side = 2 ** int(rng.integers(1, 8))
        grain = torch.from_numpy(rng.normal(rng.uniform(-0.7, 0.7, (3, 1, 1)), rng.uniform(0.02, 0.8), (3, side, side)))
        out.append(F.interpolate(grain.float()[None], SEEN, mode="bicubic", align_corners=False)[0].clamp(-1, 1))
    return torch.stack(out)


@dataclass(frozen=True)
class Targets:
    """What the maps should say.

    heart B H W: 1 in the cells of hearts, falling off about them; thing B H W FIELDS: the thing nearest to each cell,
    which counts with weight B H W; offset B H W 2: from the cell's middle to that thing's heart, in cells.
    """

    heart: Tensor
    thing: Tensor
    offset: Tensor
    weight: Tensor

    @classmethod
    def of(cls, things: Tensor) -> Targets:
        """things: B T FIELDS, rows of NaN where there is none."""
        right = FIELDS.index("right")
        at = (things[..., right : right + 2] + 1) * (GRID / 2)  # B T 2: x, y in cells
        there = ~at.isnan().any(dim=-1)
        at = at.nan_to_num(nan=-1e3)
        axis = torch.arange(GRID) + 0.5
        middle = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # H W 2
        away = at[:, :, None, None] - middle  # B T H W 2
        distance, nearest = away.norm(dim=-1).min(dim=1)  # B H W
        heart = torch.exp(-0.5 * distance**2)
        weight = torch.where(distance < NEAR, heart, 0.0)
        rows = torch.arange(len(things))[:, None, None]
        image, which = there.nonzero(as_tuple=True)
        column, row = at[image, which].long().clamp(0, GRID - 1).unbind(dim=1)
        heart[image, row, column] = 1.0
        thing = things[rows, nearest].nan_to_num()
        y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        return cls(heart, thing, away[rows, nearest, y, x], weight)


def what_and_where_loss(maps: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
    """The weighed terms: the focal loss of Zhou et al. (2019), eq. 1, for hearts; means over the cells near hearts."""
    logit, heart = maps["heart"][..., 0], targets.heart
    p = logit.sigmoid()
    hit = heart == 1
    focal = torch.where(hit, (1 - p) ** 2 * F.softplus(-logit), (1 - heart) ** 4 * p**2 * F.softplus(logit))
    near = targets.weight > 0
    weight = targets.weight[near] / targets.weight.sum().clamp(min=1.0)
    thing, offset = targets.thing[near], targets.offset[near]

    def entropy(name: str) -> Tensor:
        labels = thing[:, FIELDS.index(name)].long()
        return (weight * F.cross_entropy(maps[name][near], labels, reduction="none")).sum()

    def error(name: str, wanted: Tensor, beta: float) -> Tensor:
        return (weight[:, None] * F.smooth_l1_loss(maps[name][near], wanted, reduction="none", beta=beta)).sum()

    place, bulk = FIELDS.index("x"), FIELDS.index("log_bulk")
    return {
        "heart": focal.sum() / hit.sum().clamp(min=1),
        "noun": entropy("noun"),
        "colour": entropy("colour"),
        "place": 2.0 * error("place", thing[:, place : place + 3], 0.1),
        "bulk": 5.0 * error("log_bulk", thing[:, bulk : bulk + 1], 0.05),
        "offset": 0.5 * error("offset", offset, 0.3),
    }


class WhatAndWhereTask:
    """Batches of pictures from the shards, spoilt: functions of (seed, step), drawn whole by one process."""

    def __init__(self, model: WhatAndWhere, shards: list[Pictures], batch_size: int = 32, seed: int = 0) -> None:
        self.model, self.shards, self.batch_size, self.seed = model, shards, batch_size, seed

    def batch(self, step: int, rows: range) -> tuple[Tensor, Targets]:
        assert len(rows) == self.batch_size
        rng = np.random.default_rng([self.seed, step])
        pictures, things = self._draw(rng)
        return spoil(pictures, PICTURES, rng), Targets.of(things)

    def loss(self, batch: tuple[Tensor, Targets]) -> tuple[Tensor, dict[str, float]]:
        pictures, targets = batch
        terms = what_and_where_loss(self.model(pictures), targets)
        return torch.stack(list(terms.values())).sum(), {name: term.item() for name, term in terms.items()}

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """B 3 SEEN SEEN and B T FIELDS. Half are mirrored, as the world is symmetric; a few show nothing."""
        rows = _rows(self.shards, self.batch_size, rng)
        pictures = to_images(np.stack([source.pixels[i] for source, i in rows]))
        things = torch.from_numpy(np.stack([source.things[i] for source, i in rows]))
        mirror = torch.from_numpy(rng.random(self.batch_size) < 0.5)
        pictures[mirror] = pictures[mirror].flip(-1)
        for field in ("x", "right"):
            things[mirror, :, FIELDS.index(field)] *= -1
        nothing = torch.from_numpy(rng.random(self.batch_size) < 0.02)
        if nothing.any():
            pictures[nothing], things[nothing] = clouds(int(nothing.sum()), rng), torch.nan
        return pictures, things


class MaterialTask:
    """Batches of crops from the shards, shifted about and slightly spoilt; else as WhatAndWhereTask."""

    def __init__(self, model: Material, shards: list[Crops], batch_size: int = 64, seed: int = 0) -> None:
        self.model, self.shards, self.batch_size, self.seed = model, shards, batch_size, seed

    def batch(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        assert len(rows) == self.batch_size
        rng = np.random.default_rng([self.seed, step])
        crops, materials = self._draw(rng)
        return spoil(crops, CROPS, rng), materials

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        crops, materials = batch
        logits = self.model(crops)
        right = (logits.argmax(dim=1) == materials).float().mean().item()
        return F.cross_entropy(logits, materials), {"right": right}

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """B 3 CROP CROP, half of them mirrored, and B indices into MATERIALS."""
        rows = _rows(self.shards, self.batch_size, rng)
        pixels = np.empty((self.batch_size, 3, CROP, CROP), np.uint8)
        for crop, (source, i), (y, x) in zip(
            pixels, rows, rng.integers(ROOM + 1, size=(self.batch_size, 2)), strict=True
        ):
            crop[:] = source.pixels[i, :, y : y + CROP, x : x + CROP]
        crops = to_images(pixels)
        mirror = torch.from_numpy(rng.random(self.batch_size) < 0.5)
        crops[mirror] = crops[mirror].flip(-1)
        return crops, torch.from_numpy(np.array([source.materials[i] for source, i in rows]))


def _rows(shards: list[S], batch: int, rng: np.random.Generator) -> list[tuple[S, int]]:
    picked = [shards[i] for i in rng.integers(len(shards), size=batch)]
    return [(source, int(rng.integers(len(source.pixels)))) for source in picked]


@torch.no_grad()
def choose_threshold(model: WhatAndWhere, pictures: Pictures) -> float:
    """The score that counts the things right in most of the pictures; the middle one of the best."""
    there = (~np.isnan(pictures.things[..., 0])).sum(axis=1)
    thresholds = np.arange(0.1, 0.81, 0.02).round(2)
    right = np.zeros(len(thresholds), np.int64)
    for start in range(0, len(there), 64):
        scores, peaks = hearts(model(to_images(np.array(pictures.pixels[start : start + 64]))))
        counted = (scores * peaks).flatten(1)[..., None] >= torch.from_numpy(thresholds)  # B HW thresholds
        right += (counted.sum(dim=1).numpy() == there[start : start + 64, None]).sum(axis=0)
    return float(np.median(thresholds[right == right.max()]).round(2))


def train(
    minutes: float, shards: int = 16, crowded: int = 4, runs: Path = Path("runs/detector"), folder: Path = FOLDER
) -> None:
    """Draw what is missing of the training scenes, train both parts, and write the detector.

    minutes: training time in all, those of earlier runs included; drawing comes on top. shards: of 1024 pictures and
    as many crops. crowded: of 1024 pictures of the hardest kinds. runs: where all that is kept, and the runs' states.
    folder: where the detector is written.
    """
    train_on = partial(draw_pictures, TRAINING_SEED)
    crowd = partial(draw_pictures, CROWDED_SEED, kind_weights=CROWDED)
    pictures = [shard(runs / "pictures", number, train_on, Pictures) for number in range(shards)]
    pictures += [shard(runs / "crowded", number, crowd, Pictures) for number in range(crowded)]
    crops = [shard(runs / "crops", number, partial(draw_crops, TRAINING_SEED), Crops) for number in range(shards)]
    validation = shard(runs / "validation", 0, partial(draw_pictures, VALIDATION_SEED), Pictures)
    torch.manual_seed(0)
    detector = Detector(DetectorConfig())
    tasks = {
        "material": MaterialTask(detector.material, crops),
        "what-and-where": WhatAndWhereTask(detector.what_and_where, pictures),
    }
    for part, task in tasks.items():
        loop = Loop(task, LOOP, runs / part)
        loop.resume()
        loop.run(Budget(minutes=minutes * (MATERIAL_SHARE if part == "material" else 1 - MATERIAL_SHARE)))
        loop.ema.copy_to_model()
    threshold = choose_threshold(detector.what_and_where, validation)
    detector.config = replace(detector.config, threshold=threshold)
    detector.save_pretrained(folder)


if __name__ == "__main__":
    import tyro

    tyro.cli(train)
