"""Trains the toybox detector: `python -m pipelines.evaluation.detector.training --minutes 90`.

Run again, it goes on where it was. B batch, T things at most in a scene, H W cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.data.toybox.scene import Scene
from cascade.training.loop import Loop, LoopConfig
from cascade.training.run import check_same
from cascade.training.schedule import Budget
from pipelines.evaluation.detector.augmentation import CROPS, PICTURES, clouds, melt, roughen, spoil
from pipelines.evaluation.detector.data import (
    FIELDS,
    ROOM,
    TRAINING_SEED,
    VALIDATION_SEED,
    Crops,
    Pictures,
    S,
    crowded,
    draw_crops,
    draw_misshapen,
    draw_pictures,
    seated,
    shard,
    to_images,
    usual,
)
from pipelines.evaluation.detector.lessons import read_lessons
from pipelines.evaluation.detector.network import (
    CROP,
    FOLDER,
    GRID,
    Detector,
    DetectorConfig,
    Material,
    WhatAndWhere,
    hearts,
)

LOOP = LoopConfig(
    optimizer="muon", learning_rate=2e-3, warmup_steps=100, decay=0.5, ema_decay=0.998, checkpoint_minutes=2.0
)
LESSONS = Path("docs/quality/lessons")
LESSON_SHARE = 0.25  # of the pictures shown: lessons are few
EXAMINED = 5  # of so many lessons, one is not learned from: `clear` is chosen by these
MATERIAL_SHARE = 0.14  # of the training time
NEAR = 1.5  # cells about a heart that learn to describe its thing


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

    form = thing[:, FIELDS.index("form")]

    def entropy(name: str, weight: Tensor) -> Tensor:
        labels = thing[:, FIELDS.index(name)].long()
        return (weight * F.cross_entropy(maps[name][near], labels, reduction="none")).sum()

    def error(name: str, wanted: Tensor, beta: float) -> Tensor:
        return (weight[:, None] * F.smooth_l1_loss(maps[name][near], wanted, reduction="none", beta=beta)).sum()

    place, bulk = FIELDS.index("x"), FIELDS.index("log_bulk")
    return {
        "heart": focal.sum() / hit.sum().clamp(min=1),
        "noun": entropy("noun", weight * form),  # what is hardly a toy teaches nothing about toys
        "colour": entropy("colour", weight),
        "form": (weight * F.binary_cross_entropy_with_logits(maps["form"][near][:, 0], form, reduction="none")).sum(),
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
        pictures, things = melt(pictures, things, rng)
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
        crops, materials = roughen(*self._draw(rng), rng)
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


@torch.no_grad()
def choose_clear(detector: Detector, examined: list[Pictures]) -> float:
    """How clear things must be for the pictures to be called right that are so, where to be too kind counts twice; the
    middle one of the best."""
    least = []  # of each picture, how clear the least clear of its things is
    for source in examined:
        for start in range(0, len(source.pixels), 64):
            pictures = to_images(np.array(source.pixels[start : start + 64]))
            seen = detector.see(pictures)
            nothing = torch.zeros(len(pictures))
            least.append(nothing.scatter_reduce(0, seen.image, seen.clear, "amin", include_self=False).numpy())
    form = np.concatenate([source.things[..., FIELDS.index("form")] for source in examined])
    right = np.nanmin(form, axis=1) > 0.5
    thresholds = np.arange(0.05, 0.96, 0.01).round(2)
    called = np.concatenate(least)[:, None] >= thresholds
    cost = (called & ~right[:, None]).sum(axis=0) * 2 + (~called & right[:, None]).sum(axis=0)
    return float(np.median(thresholds[cost == cost.min()]).round(2))


def split(lessons: Pictures) -> tuple[Pictures, Pictures]:
    """What is learned from, and what `clear` is chosen by."""
    examined = np.arange(len(lessons.pixels)) % EXAMINED == 0
    learned, kept = (Pictures(lessons.pixels[which], lessons.things[which]) for which in (~examined, examined))
    return learned, kept


def as_many(lessons: Pictures, renders: Pictures) -> Pictures:
    """Of the renders that show something, as many as there are lessons."""
    which = np.flatnonzero(~np.isnan(renders.things[:, 0, 0]))[: len(lessons.pixels)]
    return Pictures(renders.pixels[which], renders.things[which])


def train(
    minutes: float,
    shards: int = 16,
    crowds: int = 10,
    seats: int = 3,
    misshapen: int = 6,
    lessons: Path = LESSONS,
    start_from: Path | None = None,
    only: Literal["material", "what-and-where"] | None = None,
    runs: Path = Path("runs/detector"),
    folder: Path = FOLDER,
) -> None:
    """Draw what is missing of the training scenes, train both parts, and write the detector.

    minutes: training time in all, those of earlier runs included; drawing comes on top. shards: of 1024 pictures and
    as many crops. crowds, seats, misshapen: of 1024 pictures of things on and behind each other, of chairs that carry
    something, of misshapen things. lessons: generated pictures judged by eye (lessons.py). start_from: a detector whose
    weights a new run begins with. only: the part that is trained, in its share of the minutes; the other one stays as
    it is in start_from. runs: where what is drawn is kept, and the runs' states. folder: where the detector is written.
    """
    if only is not None and start_from is None:
        raise ValueError(f"only the {only} part: say with start_from which detector's other part goes with it")
    settings = {"loop": {"optimizer": LOOP.optimizer}, "start_from": start_from and str(start_from)}
    taught, examined = split(read_lessons(lessons))

    def pictures(name: str, scenes: Callable[[int], Scene], count: int) -> list[Pictures]:
        return [shard(runs / name, number, partial(draw_pictures, scenes), Pictures) for number in range(count)]

    shown = pictures("pictures", usual, shards) + pictures("seated", seated, seats)
    shown += [shard(runs / "misshapen", number, draw_misshapen, Pictures) for number in range(misshapen)]
    shown = 2 * shown + pictures("crowded", crowded, crowds)
    shown += round(len(shown) * LESSON_SHARE / (1 - LESSON_SHARE)) * [taught]
    draw = partial(draw_crops, TRAINING_SEED)
    crops = [shard(runs / "crops", number, draw, Crops) for number in range(shards * (only != "what-and-where"))]
    if stale := {source.things.shape[-1] for source in shown} - {len(FIELDS)}:
        raise ValueError(
            f"pictures in {runs} tell {stale} things of a toy, not {len(FIELDS)}: delete them, or give other runs"
        )
    (validation,) = pictures("validation", partial(usual, seed=VALIDATION_SEED), 1)
    torch.manual_seed(0)
    detector = Detector(DetectorConfig())
    if start_from is not None:
        detector.load_state_dict(Detector.from_pretrained(start_from).state_dict())
    tasks = {
        "material": MaterialTask(detector.material, crops),
        "what-and-where": WhatAndWhereTask(detector.what_and_where, shown),
    }
    tasks = {part: task for part, task in tasks.items() if only in (None, part)}
    for part in tasks:
        check_same(settings, runs / part)
    for part, task in tasks.items():
        loop = Loop(task, LOOP, runs / part, settings=settings)
        loop.resume()
        loop.run(Budget(minutes=minutes * (MATERIAL_SHARE if part == "material" else 1 - MATERIAL_SHARE)))
        loop.ema.copy_to_model()
    threshold = choose_threshold(detector.what_and_where, validation)
    detector.config = replace(detector.config, threshold=threshold)
    detector.config = replace(detector.config, clear=choose_clear(detector, [examined, as_many(examined, validation)]))
    detector.save_pretrained(folder)


if __name__ == "__main__":
    import tyro

    tyro.cli(train)
