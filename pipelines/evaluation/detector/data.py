"""What the toybox detector learns from: renders of all pairings, true and misshapen, and what stands where in them.

S scenes of a shard, T things at most in a scene. Images are RGB, in [-1, 1] as floats and uint8 on the disk.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade.data.toybox.camera import CAMERA
from cascade.data.toybox.description import COLOURS, COUNTS, sample_description
from cascade.data.toybox.materials import MATERIALS
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.render import render
from cascade.data.toybox.scene import Scene, Thing, arrange, sample_scene
from pipelines.evaluation.detector.misshapen import known, misshape
from pipelines.evaluation.detector.network import CROP, SEEN, SIZE

# No other collections'.
TRAINING_SEED, VALIDATION_SEED, CROWDED_SEED, SEATED_SEED, MISSHAPEN_SEED = 424243, 424244, 424246, 424247, 424248
# Things that stand on each other or hide each other are the hardest to read.
CROWDED = {"count": 0.05, "left": 0.1, "front": 0.15, "on": 0.3, "stack": 0.4}
SEATED = {"on": 0.4, "stack": 0.6}
SHARD = 1024  # scenes per file
EMPTY_EVERY = 50  # scenes, of which one shows the bare ground
FIRST_CROP_SCENE = 1 << 24  # material crops are of other scenes than the pictures
MEASURED = 64  # px, at which is measured how much of a thing is misshapen
ROOM = 16  # px that a stored crop is larger than a read one, to shift it about
FIELDS = ("noun", "colour", "x", "y", "z", "log_bulk", "right", "down", "form")  # columns of Pictures.things
TOLERANCE = 0.08  # the share of a thing that may lack or be another's before its form falls to 1 / e


def heart(thing: Thing) -> tuple[float, float]:
    """The place in the picture, (x right, y down) in [-1, 1], of the middle of its largest part in its own colour.

    That part is solid and shows the material, whereas the middle of a chair's or a table's box is thin air.
    """
    noun = NOUNS[thing.look.noun]
    _, frames, centres = noun.arrays
    volume = np.abs(np.linalg.det(frames)) * [part.paint == "body" for part in noun.parts]
    place = np.array(thing.position) + thing.scale * thing.rotation() @ centres[volume.argmax()]
    right, down = CAMERA.project(place)
    return float(right), float(down)


def things_of(scene: Scene) -> NDArray[np.float32]:
    """T x FIELDS; rows of NaN where the scene has fewer than T things. noun, colour: index into NOUNS, COLOURS.

    form: 1 of a thing that is as it should be, falling towards 0 the more of it is not.
    """
    rows = np.full((max(COUNTS.values()), len(FIELDS)), np.nan, np.float32)
    for row, thing in zip(rows, scene.things, strict=False):
        noun, colour = list(NOUNS).index(thing.look.noun), list(COLOURS).index(thing.look.colour)
        row[:] = (noun, colour, *thing.position, np.log(thing.bulk), *heart(thing), 1.0)
    return rows


def bare(scene: Scene, gone: Sequence[int] | None = None) -> Scene:
    """The same ground and light, with the things (or those numbered `gone`) moved far out of the frame."""
    x = [60.0 * (gone is None or i in gone) for i in range(len(scene.things))]
    things = zip(scene.things, x, strict=True)
    return replace(scene, things=tuple(replace(t, position=(t.position[0] + x, *t.position[1:])) for t, x in things))


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def to_images(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels).float() / 127.5 - 1


@dataclass(frozen=True)
class Pictures:
    """pixels S 3 SEEN SEEN, things S T FIELDS; memory-mapped."""

    pixels: NDArray[np.uint8]
    things: NDArray[np.float32]


@dataclass(frozen=True)
class Crops:
    """pixels S 3 h h with h = CROP + ROOM, about a heart each; materials S, indices into MATERIALS; memory-mapped."""

    pixels: NDArray[np.uint8]
    materials: NDArray[np.int64]


S = TypeVar("S", Pictures, Crops)


def usual(index: int, seed: int = TRAINING_SEED) -> Scene:
    return sample_scene(seed, index, pairings="any")


def crowded(index: int) -> Scene:
    return sample_scene(CROWDED_SEED, index, CROWDED, pairings="any")


def seated(index: int) -> Scene:
    """Something stands on the seat of a chair, which hides much of it."""
    rng = np.random.default_rng([SEATED_SEED, index])
    said = sample_description(rng, SEATED, pairings="any")
    looks = list(said.looks)
    chair = rng.integers(1, len(looks))
    looks[chair] = replace(looks[chair], noun="chair")
    return arrange(replace(said, looks=tuple(looks)), rng)


def draw_pictures(collection: Callable[[int], Scene], first: int, count: int) -> Pictures:
    """Pictures of scenes `first` and on of a collection; now and then of the bare ground."""
    pixels, things = np.empty((count, 3, SEEN, SEEN), np.uint8), []
    for start in range(0, count, 32):
        shown = []
        for i in range(start, min(start + 32, count)):
            scene = collection(first + i)
            empty = i % EMPTY_EVERY == 0
            things.append(np.full_like(things_of(scene), np.nan) if empty else things_of(scene))
            shown.append(bare(scene) if empty else scene)
        pixels[start : start + len(shown)] = to_bytes(render(shown, SEEN))
    return Pictures(pixels, np.stack(things))


def draw_misshapen(first: int, count: int) -> Pictures:
    """Pictures `first` and on in which things are misshapen: one of different ones, or all that are alike."""
    pixels, things = np.empty((count, 3, SEEN, SEEN), np.uint8), []
    for start in range(0, count, 32):
        numbers = range(first + start, first + min(start + 32, count))
        true, shown, without, changed, nouns = [], [], [], [], {}
        for i in numbers:
            rng, scene, name = np.random.default_rng([MISSHAPEN_SEED, i]), usual(i, MISSHAPEN_SEED), f"misshapen {i}"
            which = list(range(len(scene.things))) if scene.relation is None else [int(rng.integers(2))]
            nouns[name] = misshape(scene.things[which[0]].look.noun, rng)
            true.append(scene)
            changed.append(which)
            without.append(bare(scene, which))
        with known(nouns):
            for scene, which, name in zip(true, changed, nouns, strict=True):
                rows = list(scene.things)
                for k in which:
                    rows[k] = replace(rows[k], look=replace(rows[k].look, noun=name))
                shown.append(replace(scene, things=tuple(rows)))
            pixels[start : start + len(shown)] = to_bytes(render(shown, SEEN))
            after = render(shown, MEASURED, supersample=1)
        before = render(true, MEASURED, supersample=1)
        share = _differ(after, before) / _differ(render(without, MEASURED, supersample=1), before).clamp(min=1)
        for scene, which, form in zip(true, changed, torch.exp(-share / TOLERANCE).tolist(), strict=True):
            things.append(things_of(scene))
            things[-1][which, FIELDS.index("form")] = form
    return Pictures(pixels, np.stack(things))


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """How many pixels do: B."""
    return ((a - b).abs().amax(dim=1) > 0.1).sum(dim=(1, 2))


def draw_crops(seed: int, first: int, count: int) -> Crops:
    """Crops `first` and on of collection `seed`; materials come evenly."""
    side = CROP + ROOM
    materials = np.empty(count, np.int64)
    by_place: dict[tuple[int, int], list[tuple[int, Scene]]] = defaultdict(list)  # crops at one place are drawn at once
    for i in range(count):
        scene = sample_scene(seed, FIRST_CROP_SCENE + first + i, pairings="any")
        rng = np.random.default_rng([seed, first + i])
        draws = rng.integers(len(MATERIALS), size=len(scene.things))
        if scene.relation is None:
            draws[:] = draws[0]
        looks = [replace(thing.look, material=MATERIALS[m]) for thing, m in zip(scene.things, draws, strict=True)]
        things = [replace(thing, look=look) for thing, look in zip(scene.things, looks, strict=True)]
        which = rng.integers(len(things))
        materials[i] = draws[which]
        left, top = (
            int(np.clip(round(((at + 1) / 2 * SIZE - side / 2) / 8) * 8, 0, SIZE - side)) for at in heart(things[which])
        )
        by_place[top, left].append((i, replace(scene, things=tuple(things))))
    pixels = np.empty((count, 3, side, side), np.uint8)
    for (top, left), members in by_place.items():
        rows, scenes = zip(*members, strict=True)
        pixels[list(rows)] = to_bytes(render(scenes, SIZE, crop=(top, left, side, side)))
    return Crops(pixels, materials)


def shard(folder: Path, number: int, draw: Callable[[int, int], S], kind: type[S]) -> S:
    """Shard `number` of those in the folder, from the disk; drawn by draw(first, count) if it is not yet there."""
    final = folder / f"shard-{number:03d}"
    names = [field.name for field in fields(kind)]
    if not final.is_dir():
        fresh = folder / f".{final.name}.{os.getpid()}"
        fresh.mkdir(parents=True, exist_ok=True)
        drawn = draw(number * SHARD, SHARD)
        for name in names:
            np.save(fresh / f"{name}.npy", getattr(drawn, name))
        fresh.rename(final)  # only now: a shard that is there is whole
    return kind(*(np.load(final / f"{name}.npy", mmap_mode="r") for name in names))
