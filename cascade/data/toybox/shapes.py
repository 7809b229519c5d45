"""What toys are made of: convex primitives, and the noun that is a few of them in a unit footprint.

Local axes: x right, y up, z towards the viewer at yaw 0; in units of the footprint, which spans [-0.5, 0.5] in x and z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Vec3 = tuple[float, float, float]

KINDS = ("box", "ellipsoid", "cylinder", "cone")

# Fixed paints, sRGB in [0, 1]. All are weakly saturated or small, so that the asked colour dominates a picture.
PAINTS: dict[str, Vec3] = {
    "tyre": (0.15, 0.15, 0.16),
    "glass": (0.80, 0.88, 0.92),
    "wood": (0.47, 0.37, 0.30),
    "cream": (0.93, 0.90, 0.83),
    "lamp": (0.97, 0.96, 0.90),
    "door": (0.25, 0.23, 0.23),
    "metal": (0.55, 0.56, 0.58),
    "coal": (0.12, 0.12, 0.13),
    "coffee": (0.30, 0.24, 0.21),
    "clay": (0.60, 0.48, 0.42),
    "bill": (0.86, 0.66, 0.44),
    "blush": (0.88, 0.74, 0.74),
}


@dataclass(frozen=True)
class Part:
    """One convex primitive: a unit shape, [-1, 1] on each axis, scaled by `half`, tilted, then moved to `centre`.

    Cylinders and cones have their axis along y (a cone's apex is at y = +1). The tilt is in degrees, about x, then
    about z. `paint` is "body" (the colour the caption names, times `shade`) or a key of PAINTS.
    """

    kind: str
    centre: Vec3
    half: Vec3
    paint: str = "body"
    shade: float = 1.0
    tilt: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"part kind {self.kind!r}: expected one of {KINDS}")
        if self.paint != "body" and self.paint not in PAINTS:
            raise ValueError(f"paint {self.paint!r}: expected 'body' or one of {sorted(PAINTS)}")
        if min(self.half) <= 0:
            raise ValueError(f"half sizes {self.half}: expected all positive")

    def frame(self) -> NDArray[np.float64]:
        """3 x 3, the columns are the half axes in the noun's coordinates."""
        tx, tz = (math.radians(a) for a in self.tilt)
        about_x = np.array([[1, 0, 0], [0, math.cos(tx), -math.sin(tx)], [0, math.sin(tx), math.cos(tx)]])
        about_z = np.array([[math.cos(tz), -math.sin(tz), 0], [math.sin(tz), math.cos(tz), 0], [0, 0, 1]])
        return about_z @ about_x @ np.diag(self.half)


@dataclass(frozen=True)
class Noun:
    """A toy. `plural` and `synonyms` (singular words that mean nothing else in this world) serve the captions.

    `rest` is the height on which another toy stands, a little below the highest point where that is a tip.
    """

    parts: tuple[Part, ...]
    plural: str
    rest: float
    synonyms: tuple[str, ...] = ()
    height: float = field(init=False)
    width: float = field(init=False)
    bulk: float = field(init=False)  # the larger of height and width, so scaled that all nouns look alike large

    def __post_init__(self) -> None:
        low, high = self.bounds()
        object.__setattr__(self, "height", float(high[1]))
        object.__setattr__(self, "width", float(2 * max(np.abs(low[[0, 2]]).max(), np.abs(high[[0, 2]]).max())))

        object.__setattr__(self, "bulk", max(self.height, 1.05 * self.width))

    @cached_property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """(index into KINDS: n, frames: n 3 3, centres: n 3) of the parts."""
        return (
            np.array([KINDS.index(part.kind) for part in self.parts]),
            np.stack([part.frame() for part in self.parts]),
            np.array([part.centre for part in self.parts], dtype=np.float64),
        )

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The exact axis-aligned bounding box (low, high) in the noun's coordinates."""
        lows, highs = zip(*(part_bounds(part) for part in self.parts), strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)


def part_bounds(part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The exact axis-aligned box of a part, from the support function of its unit shape."""
    frame, centre = part.frame(), np.array(part.centre)
    high = np.array([support(part.kind, frame[axis]) for axis in range(3)])
    low = np.array([-support(part.kind, -frame[axis]) for axis in range(3)])
    return centre + low, centre + high


def support(kind: str, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the unit shape `kind` reaches along `direction` (... x 3, any length): its largest dot product."""
    x, y, z = direction[..., 0], direction[..., 1], direction[..., 2]
    if kind == "box":
        return np.abs(x) + np.abs(y) + np.abs(z)
    if kind == "ellipsoid":
        return np.sqrt(x * x + y * y + z * z)
    if kind == "cylinder":
        return np.hypot(x, z) + np.abs(y)
    return np.maximum(y, np.hypot(x, z) - y)
