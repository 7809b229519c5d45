"""A scene is a small record of things on a ground; a sample of one is a pure function of (seed, index).

World axes: x right, y up, z towards the camera, which is fixed. The ground is y = 0; lengths are in world units, of
which the frame's height holds about 2.3 at the origin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.data.toybox.camera import picture_boxes
from cascade.data.toybox.description import (
    KIND_WEIGHTS,
    RELATIONS,
    SIZES,
    Description,
    Look,
    Pairings,
    pick,
    sample_description,
)
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.shapes import Vec3


@dataclass(frozen=True)
class Ground:
    """Near-neutral sRGB colours in [0, 1]: the floor, and the backdrop at the horizon and above it."""

    floor: Vec3
    horizon: Vec3
    zenith: Vec3


GROUNDS: dict[str, Ground] = {
    "light grey": Ground((0.76, 0.76, 0.77), (0.80, 0.81, 0.83), (0.88, 0.90, 0.92)),
    "beige": Ground((0.80, 0.76, 0.70), (0.86, 0.83, 0.79), (0.93, 0.92, 0.90)),
    "cream": Ground((0.88, 0.86, 0.82), (0.90, 0.89, 0.86), (0.97, 0.97, 0.96)),
    "slate": Ground((0.44, 0.47, 0.50), (0.55, 0.58, 0.62), (0.70, 0.73, 0.77)),
}

# Directions from the scene towards the light. The overhead one leans a little, so that shapes still have a dim side.
LIGHTS: dict[str, Vec3] = {
    "left": (-0.62, 0.95, 0.50),
    "right": (0.62, 0.95, 0.50),
    "overhead": (-0.16, 1.0, 0.28),
}

FRAME_MARGIN = 0.05
# The usual bulk (see `bulk`) of a thing per kind of scene, in world units; a stack's and a pair's from the top down.
BULKS: dict[str, tuple[float, ...]] = {
    "one": (1.05,),
    "left": (0.80, 0.80),
    "front": (0.66, 0.76),
    "on": (0.62, 0.82),
    "stack": (0.44, 0.54, 0.62),
}
COUNT_BULKS = {2: 0.80, 3: 0.60, 4: 0.54, 5: 0.48}
BULK_JITTER = 0.06


@dataclass(frozen=True)
class Thing:
    """A look in the world: its footprint's centre stands at `position`, `scale` times as large as the noun is given;
    `yaw` is in degrees."""

    look: Look
    position: Vec3
    scale: float
    yaw: float

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale {self.scale}: expected a positive number")

    def rotation(self) -> NDArray[np.float64]:
        """3 x 3, from the noun's directions to the world's."""
        c, s = math.cos(math.radians(self.yaw)), math.sin(math.radians(self.yaw))
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])

    @property
    def bulk(self) -> float:
        """The larger of height and mean width, in world units: the measure in which all nouns look alike large."""
        return self.scale * NOUNS[self.look.noun].bulk


@dataclass(frozen=True)
class Scene:
    """`relation` is None (all alike, and counted), "left" (things[0] is left of things[1]), "front" (in front of it) or
    "on" (on top of it; of three things, each stands on the next)."""

    things: tuple[Thing, ...]
    ground: str
    light: str
    relation: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("ground", GROUNDS), ("light", LIGHTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(sorted(known))}")
        if self.relation is not None and self.relation not in RELATIONS:
            raise ValueError(f"relation {self.relation!r}: expected one of {RELATIONS}, or None")
        self.description  # noqa: B018  (raises for what no description can say)

    @property
    def description(self) -> Description:
        looks = tuple(thing.look for thing in self.things)
        if self.relation is not None:
            return Description(looks, relation=self.relation)
        if len(set(looks)) != 1:
            raise ValueError(f"{len(set(looks))} different looks without a relation: expected things that look alike")
        return Description(looks[:1], count=len(looks))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        record = json.loads(text)
        things = tuple(
            Thing(Look(**thing["look"]), tuple(thing["position"]), thing["scale"], thing["yaw"])
            for thing in record.pop("things")
        )
        return cls(things=things, **record)


def picture_box(thing: Thing) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a thing in the picture, tight, in [-1, 1] if within a square frame."""
    kind, frame, centre = NOUNS[thing.look.noun].arrays
    turn = thing.scale * thing.rotation()
    boxes = picture_boxes(kind, turn @ frame, np.array(thing.position) + centre @ turn.T)
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    return float(left), float(top), float(right), float(bottom)


Box = tuple[float, float, float, float]


def in_frame(box: Box) -> bool:
    """Whether what fills a picture box lies wholly within a square frame, with FRAME_MARGIN to spare."""
    return min(box) >= FRAME_MARGIN - 1.0 and max(box) <= 1.0 - FRAME_MARGIN


def hidden(behind: Box, front: Box) -> float:
    """The share of the box `behind` that the box `front` covers."""
    width = min(behind[2], front[2]) - max(behind[0], front[0])
    height = min(behind[3], front[3]) - max(behind[1], front[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((behind[2] - behind[0]) * (behind[3] - behind[1]))


def apart(first: Box, second: Box) -> bool:
    """Whether two things stand side by side in the picture, with a visible gap between them."""
    return first[2] + 0.02 <= second[0] or second[2] + 0.02 <= first[0]


def sample_scene(
    seed: int,
    index: int,
    kind_weights: Mapping[str, float] = KIND_WEIGHTS,
    pairings: Pairings = "seen",
    made: float | None = None,
) -> Scene:
    """Scene `index` of the endless collection `seed`; the rest as for `sample_description`."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    return arrange(sample_description(rng, kind_weights, pairings, made), rng)


def usual_bulks(description: Description) -> tuple[float, ...]:
    """The bulk of each thing of a description, in world units, if it is of medium size."""
    if description.kind == "count":
        return (COUNT_BULKS[description.count],) * description.count
    return BULKS[description.kind]


def arrange(description: Description, rng: np.random.Generator) -> Scene:
    """A scene of which the description is true: places, sizes, ground and light drawn with `rng`."""
    ground, light = pick(rng, GROUNDS), pick(rng, LIGHTS)
    # What is large must not shrink into what is usual; 0.94 leaves the jitter room and has been seen to fit.
    least = 0.94 if any(look.size == "large" for look in description.looks) else 0.0
    place = {"one": _one, "left": _left, "front": _front}.get(description.kind)
    shrink = 1.0
    while True:
        if place is not None:
            things = place(rng, description, shrink)
        elif description.kind == "count":
            things = _several(rng, description, shrink)
        else:
            things = _stacked(rng, description, shrink)
        if _shows(description, things):
            return Scene(things, ground, light, description.relation)
        shrink = max(least, 0.99 * shrink)  # places are drawn anew, a little smaller, so that the search ends


def _shows(description: Description, things: tuple[Thing, ...]) -> bool:
    """Whether all of it can be seen."""
    boxes = [picture_box(thing) for thing in things]
    if not all(in_frame(box) for box in boxes):
        return False
    if description.kind == "left":
        return apart(*boxes)
    if description.kind == "front":
        return hidden(boxes[1], boxes[0]) <= 0.5
    if description.kind == "count":
        by_depth = sorted(zip(things, boxes, strict=True), key=lambda pair: -pair[0].position[2])
        return all(hidden(box, nearer) <= 0.1 for i, (_, box) in enumerate(by_depth) for _, nearer in by_depth[:i])
    return True


def _thing(rng: np.random.Generator, look: Look, usual_bulk: float, position: Vec3) -> Thing:
    bulk = usual_bulk * SIZES[look.size] * (1.0 + rng.uniform(-BULK_JITTER, BULK_JITTER))
    return Thing(look, position, bulk / NOUNS[look.noun].bulk, 35.0 + rng.uniform(-35.0, 35.0))


def _one(rng: np.random.Generator, description: Description, shrink: float) -> tuple[Thing, ...]:
    position = (rng.uniform(-0.25, 0.25), 0.0, rng.uniform(-0.2, 0.3))
    return (_thing(rng, description.looks[0], shrink * usual_bulks(description)[0], position),)


def _left(rng: np.random.Generator, description: Description, shrink: float) -> tuple[Thing, ...]:
    """Side by side: the gap's middle lies where it leaves either side the room it needs."""
    bulks = [shrink * usual * SIZES[look.size] for usual, look in zip(BULKS["left"], description.looks, strict=True)]
    gap = rng.uniform(0.04, 0.22)
    middle = 0.5 * (bulks[0] - bulks[1]) + rng.uniform(-0.06, 0.06)
    x = (middle - 0.5 * (gap + bulks[0]), middle + 0.5 * (gap + bulks[1]))
    return tuple(
        _thing(rng, look, shrink * usual, (at, 0.0, rng.uniform(-0.2, 0.2)))
        for look, usual, at in zip(description.looks, BULKS["left"], x, strict=True)
    )


def _front(rng: np.random.Generator, description: Description, shrink: float) -> tuple[Thing, ...]:
    near, far = rng.uniform(0.4, 0.6), -rng.uniform(0.55, 0.75)
    middle, side = rng.uniform(-0.12, 0.12), rng.choice((-1.0, 1.0)) * rng.uniform(0.12, 0.24)
    return (
        _thing(rng, description.looks[0], shrink * BULKS["front"][0], (middle + side, 0.0, near)),
        _thing(rng, description.looks[1], shrink * BULKS["front"][1], (middle - side, 0.0, far)),
    )


def _several(rng: np.random.Generator, description: Description, shrink: float) -> tuple[Thing, ...]:
    """Alike, from left to right: up to three in a row, more in two rows, staggered so that each is seen."""
    count, look = description.count, description.looks[0]
    slot = {2: 0.96, 3: 0.70, 4: 0.53, 5: 0.41}[count]
    things = []
    for k in range(count):
        x = slot * (k - 0.5 * (count - 1) + rng.uniform(-0.06, 0.06))
        z = rng.uniform(-0.15, 0.15) if count <= 3 else (-0.65, 0.45)[k % 2] + rng.uniform(-0.06, 0.06)
        things.append(_thing(rng, look, shrink * COUNT_BULKS[count], (x, 0.0, z)))
    return tuple(things)


def _stacked(rng: np.random.Generator, description: Description, shrink: float) -> tuple[Thing, ...]:
    """From the top down, each on the next."""
    looks, usual = description.looks, BULKS[description.kind]
    x, z = rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.2)
    height, things = 0.0, []
    for look, bulk in zip(reversed(looks), reversed(usual), strict=True):
        thing = _thing(rng, look, shrink * bulk, (x, height, z))
        height += thing.scale * NOUNS[look.noun].rest
        things.append(thing)
    return tuple(reversed(things))
