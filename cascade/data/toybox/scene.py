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

from cascade.data.toybox.nouns import NOUNS, Vec3, support

# sRGB in [0, 1]; hues at least 22 degrees apart.
COLOURS: dict[str, Vec3] = {
    "red": (0.86, 0.07, 0.11),
    "orange": (0.98, 0.46, 0.04),
    "yellow": (0.97, 0.85, 0.07),
    "green": (0.13, 0.62, 0.18),
    "turquoise": (0.08, 0.74, 0.72),
    "blue": (0.10, 0.27, 0.86),
    "purple": (0.47, 0.16, 0.74),
    "pink": (0.99, 0.42, 0.68),
}


@dataclass(frozen=True)
class Ground:
    """Near-neutral sRGB colours in [0, 1]: the floor, and the backdrop at the horizon and above it."""

    floor: Vec3
    horizon: Vec3
    zenith: Vec3


GROUNDS: dict[str, Ground] = {
    "light grey": Ground((0.76, 0.76, 0.77), (0.80, 0.81, 0.83), (0.88, 0.90, 0.92)),
    "beige": Ground((0.80, 0.76, 0.70), (0.86, 0.83, 0.79), (0.93, 0.92, 0.90)),
    "white": Ground((0.91, 0.91, 0.90), (0.91, 0.92, 0.93), (0.97, 0.97, 0.98)),
    "slate": Ground((0.44, 0.47, 0.50), (0.55, 0.58, 0.62), (0.70, 0.73, 0.77)),
}

# Directions from the scene towards the light. The overhead one leans a little, so that shapes still have a dim side.
LIGHTS: dict[str, Vec3] = {
    "left": (-0.62, 0.95, 0.50),
    "right": (0.62, 0.95, 0.50),
    "overhead": (-0.16, 1.0, 0.28),
}

COUNTS: dict[str, int] = {"two": 2, "three": 3}
RELATIONS = ("left", "on")

# What is drawn, and how often.
KIND_WEIGHTS: dict[str, float] = {"one": 0.50, "count": 0.15, "left": 0.20, "on": 0.15}


@dataclass(frozen=True)
class Camera:
    """A pinhole that looks from `eye` at `target`; `tan_half` is the tangent of half the vertical field of view."""

    eye: Vec3
    target: Vec3
    tan_half: float

    def axes(self) -> NDArray[np.float64]:
        """3 x 3, the rows are the camera's right, up and forward."""
        forward = np.array(self.target) - np.array(self.eye)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 1.0, 0.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points (... x 3) to the picture (... x 2): x right, y down, both in [-1, 1] within a square frame."""
        right, up, depth = np.moveaxis((points - np.array(self.eye)) @ self.axes().T, -1, 0)
        return np.stack([right, -up], axis=-1) / (depth * self.tan_half)[..., None]


CAMERA = Camera(eye=(0.0, 1.55, 5.4), target=(0.0, 0.6, 0.0), tan_half=0.212)
FRAME_MARGIN = 0.05


@dataclass(frozen=True)
class Thing:
    """A noun in the world: its footprint's centre stands at `position`, `size` scales it, `yaw` is in degrees."""

    noun: str
    colour: str
    position: Vec3
    size: float
    yaw: float

    def __post_init__(self) -> None:
        if self.noun not in NOUNS:
            raise ValueError(f"noun {self.noun!r}: expected one of {sorted(NOUNS)}")
        if self.colour not in COLOURS:
            raise ValueError(f"colour {self.colour!r}: expected one of {sorted(COLOURS)}")
        if not self.size > 0:
            raise ValueError(f"size {self.size}: expected a positive number")

    def rotation(self) -> NDArray[np.float64]:
        """3 x 3, from the noun's directions to the world's."""
        c, s = math.cos(math.radians(self.yaw)), math.sin(math.radians(self.yaw))
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


@dataclass(frozen=True)
class Scene:
    """`relation` is None (all alike, and counted), "left" (things[0] is left of things[1]) or "on" (on top of it)."""

    things: tuple[Thing, ...]
    ground: str
    light: str
    relation: str | None = None

    def __post_init__(self) -> None:
        if self.ground not in GROUNDS:
            raise ValueError(f"ground {self.ground!r}: expected one of {sorted(GROUNDS)}")
        if self.light not in LIGHTS:
            raise ValueError(f"light {self.light!r}: expected one of {sorted(LIGHTS)}")
        if self.relation is not None and (self.relation not in RELATIONS or len(self.things) != 2):
            raise ValueError(
                f"relation {self.relation!r} of {len(self.things)} things: expected {RELATIONS} of two, or None"
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        record = json.loads(text)
        things = tuple(Thing(**{**thing, "position": tuple(thing["position"])}) for thing in record.pop("things"))
        return cls(things=things, **record)


def picture_box(thing: Thing) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a thing in the picture, tight, in [-1, 1] if within a square frame."""
    points = []
    for part in NOUNS[thing.noun].parts:
        frame = thing.size * thing.rotation() @ part.frame()
        centre = np.array(thing.position) + thing.size * thing.rotation() @ np.array(part.centre)
        # The box around the part in camera axes: its reach along each bounds the projection tighter than corners do.
        axes = CAMERA.axes()
        high = axes @ centre + support(part.kind, axes @ frame)
        low = axes @ centre - support(part.kind, -(axes @ frame))
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        points.append(CAMERA.project(corners @ axes))
    stacked = np.concatenate(points)
    (left, top), (right, bottom) = stacked.min(axis=0), stacked.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def in_frame(thing: Thing) -> bool:
    """Whether a thing lies wholly within a square frame, with FRAME_MARGIN to spare."""
    left, top, right, bottom = picture_box(thing)
    limit = 1.0 - FRAME_MARGIN
    return min(left, top) >= -limit and max(right, bottom) <= limit


def apart(first: Thing, second: Thing) -> bool:
    """Whether two things do not overlap in the picture: a visible gap lies between them, side by side."""
    (left_a, _, right_a, _), (left_b, _, right_b, _) = picture_box(first), picture_box(second)
    return right_a + 0.02 <= left_b or right_b + 0.02 <= left_a


def sample_scene(seed: int, index: int, kind_weights: Mapping[str, float] = KIND_WEIGHTS) -> Scene:
    """Scene `index` of the endless collection `seed`. Weights of the kinds one, count, left, on need not sum to 1."""
    unknown = set(kind_weights) - set(KIND_WEIGHTS)
    if unknown:
        raise ValueError(f"scene kinds {sorted(unknown)}: expected among {sorted(KIND_WEIGHTS)}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    weights = np.array(list(kind_weights.values()), dtype=np.float64)
    kind = list(kind_weights)[rng.choice(len(weights), p=weights / weights.sum())]
    ground, light = _pick(rng, GROUNDS), _pick(rng, LIGHTS)
    what = [(_pick(rng, NOUNS), _pick(rng, COLOURS)) for _ in range(2)]
    count = COUNTS[_pick(rng, COUNTS)]
    shrink = 1.0
    while True:
        if kind == "one":
            things = _one(rng, what[0], shrink)
        elif kind == "count":
            things = _row(rng, [what[0]] * count, shrink)
        elif kind == "left":
            things = _row(rng, what, shrink)
        else:
            things = _stack(rng, what[0], what[1], shrink)
        if all(in_frame(thing) for thing in things) and (kind == "on" or _all_apart(things)):
            return Scene(things, ground, light, kind if kind in RELATIONS else None)
        shrink *= 0.98  # places are drawn anew, a little smaller, so that the search always ends


def _pick(rng: np.random.Generator, names: Mapping[str, object]) -> str:
    return list(names)[rng.integers(len(names))]


def _all_apart(things: tuple[Thing, ...]) -> bool:
    return all(apart(a, b) for i, a in enumerate(things) for b in things[i + 1 :])


def _yaw(rng: np.random.Generator) -> float:
    """A three-quarter view, give or take 35 degrees."""
    return 35.0 + rng.uniform(-35.0, 35.0)


def _bulk(noun: str) -> float:
    """The larger of a noun's height and mean width: what a size is divided by, so that all nouns look alike large."""
    return max(NOUNS[noun].height, 1.05 * NOUNS[noun].width)


def _one(rng: np.random.Generator, what: tuple[str, str], shrink: float) -> tuple[Thing, ...]:
    noun, colour = what
    size = shrink * rng.uniform(1.15, 1.35) / _bulk(noun)
    position = (rng.uniform(-0.25, 0.25), 0.0, rng.uniform(-0.15, 0.3))
    return (Thing(noun, colour, position, size, _yaw(rng)),)


def _row(rng: np.random.Generator, what: list[tuple[str, str]], shrink: float) -> tuple[Thing, ...]:
    """Side by side, from left to right; slots of equal width, places jittered within them."""
    slot = 2.2 / len(what)
    scale = {2: 0.95, 3: 0.68}[len(what)]
    things = []
    for k, (noun, colour) in enumerate(what):
        size = shrink * scale * rng.uniform(0.9, 1.08) / _bulk(noun)
        x = slot * (k - 0.5 * (len(what) - 1)) * 0.95 + rng.uniform(-0.06, 0.06) * slot
        things.append(Thing(noun, colour, (x, 0.0, rng.uniform(-0.15, 0.3)), size, _yaw(rng)))
    return tuple(things)


def _stack(rng: np.random.Generator, top: tuple[str, str], bottom: tuple[str, str], shrink: float) -> tuple[Thing, ...]:
    """(the thing on top, the thing below)."""
    below = NOUNS[bottom[0]]
    size_below = shrink * rng.uniform(0.9, 1.0) / _bulk(bottom[0])
    size_top = shrink * rng.uniform(0.66, 0.76) / _bulk(top[0])
    total = size_below * below.rest + size_top * NOUNS[top[0]].height
    fit = min(1.0, shrink * 1.5 / total)
    x, z = rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.2)
    lower = Thing(bottom[0], bottom[1], (x, 0.0, z), fit * size_below, _yaw(rng))
    upper = Thing(top[0], top[1], (x, fit * size_below * below.rest, z), fit * size_top, _yaw(rng))
    return upper, lower
