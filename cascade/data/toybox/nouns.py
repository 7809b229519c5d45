"""The toys: each noun is data, a few primitives in a unit footprint, standing on y = 0.

Local axes: x right, y up, z towards the viewer at yaw 0; in units of the footprint, which spans [-0.5, 0.5] in x and z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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

    def __post_init__(self) -> None:
        low, high = self.bounds()
        object.__setattr__(self, "height", float(high[1]))
        object.__setattr__(self, "width", float(2 * max(np.abs(low[[0, 2]]).max(), np.abs(high[[0, 2]]).max())))

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


def _spot(x: float, y: float, z: float, radius: float) -> Part:
    return Part("ellipsoid", (x, y, z), (radius, radius, radius), "cream")


def _wheel(x: float, z: float) -> Part:
    return Part("cylinder", (x, 0.12, z), (0.12, 0.05, 0.12), "tyre", tilt=(90.0, 0.0))


NOUNS: dict[str, Noun] = {
    "cube": Noun((Part("box", (0, 0.45, 0), (0.45, 0.45, 0.45)),), "cubes", rest=0.9),
    "ball": Noun((Part("ellipsoid", (0, 0.5, 0), (0.5, 0.5, 0.5)),), "balls", rest=0.97, synonyms=("sphere",)),
    "cone": Noun((Part("cone", (0, 0.58, 0), (0.45, 0.58, 0.45)),), "cones", rest=1.08),
    "cylinder": Noun((Part("cylinder", (0, 0.55, 0), (0.36, 0.55, 0.36)),), "cylinders", rest=1.1),
    "car": Noun(
        (
            Part("box", (0, 0.24, 0), (0.5, 0.13, 0.26)),
            Part("box", (-0.05, 0.46, 0), (0.28, 0.12, 0.22), shade=0.92),
            Part("box", (-0.05, 0.46, 0), (0.21, 0.07, 0.235), "glass"),
            Part("box", (-0.05, 0.46, 0), (0.295, 0.07, 0.16), "glass"),
            _wheel(-0.28, 0.24),
            _wheel(0.28, 0.24),
            _wheel(-0.28, -0.24),
            _wheel(0.28, -0.24),
            Part("ellipsoid", (0.49, 0.27, 0.16), (0.03, 0.045, 0.045), "lamp"),
            Part("ellipsoid", (0.49, 0.27, -0.16), (0.03, 0.045, 0.045), "lamp"),
        ),
        "cars",
        rest=0.58,
        synonyms=("automobile",),
    ),
    "house": Noun(
        (
            Part("box", (0, 0.28, 0), (0.4, 0.28, 0.4)),
            Part("box", (0, 0.56, 0), (0.283, 0.283, 0.4), tilt=(0.0, 45.0)),
            Part("box", (0.2425, 0.76, 0), (0.35, 0.03, 0.47), shade=0.62, tilt=(0.0, -45.0)),
            Part("box", (-0.2425, 0.76, 0), (0.35, 0.03, 0.47), shade=0.62, tilt=(0.0, 45.0)),
            Part("box", (0, 0.15, 0.4), (0.09, 0.15, 0.012), "door"),
            Part("box", (-0.24, 0.3, 0.4), (0.07, 0.08, 0.012), "lamp"),
            Part("box", (0.24, 0.3, 0.4), (0.07, 0.08, 0.012), "lamp"),
            Part("box", (-0.4, 0.29, 0.16), (0.012, 0.08, 0.08), "lamp"),
            Part("box", (-0.4, 0.29, -0.16), (0.012, 0.08, 0.08), "lamp"),
        ),
        "houses",
        rest=1.0,
    ),
    "tree": Noun(
        (
            Part("cylinder", (0, 0.26, 0), (0.085, 0.26, 0.085), "wood"),
            Part("ellipsoid", (0, 0.66, 0), (0.42, 0.28, 0.42)),
            Part("ellipsoid", (0.02, 0.98, -0.01), (0.3, 0.3, 0.3)),
            Part("ellipsoid", (0.22, 0.78, 0.14), (0.24, 0.22, 0.24)),
            Part("ellipsoid", (-0.22, 0.8, 0.1), (0.24, 0.22, 0.24)),
        ),
        "trees",
        rest=1.24,
    ),
    "mushroom": Noun(
        (
            Part("cylinder", (0, 0.25, 0), (0.15, 0.25, 0.15), "cream"),
            Part("ellipsoid", (0, 0.05, 0), (0.19, 0.05, 0.19), "cream"),
            Part("ellipsoid", (0, 0.58, 0), (0.5, 0.27, 0.5)),
            _spot(0.03, 0.824, 0.1, 0.085),
            _spot(0.26, 0.758, 0.22, 0.075),
            _spot(-0.27, 0.770, 0.16, 0.075),
            _spot(-0.05, 0.704, 0.42, 0.06),
            _spot(0.37, 0.740, -0.05, 0.065),
            _spot(-0.4, 0.708, -0.12, 0.065),
            _spot(0.2, 0.767, -0.25, 0.07),
        ),
        "mushrooms",
        rest=0.83,
        synonyms=("toadstool",),
    ),
    "rocket": Noun(
        (
            Part("cylinder", (0, 0.56, 0), (0.2, 0.42, 0.2)),
            Part("cone", (0, 1.19, 0), (0.2, 0.23, 0.2), shade=0.7),
            Part("cone", (0, 0.37, 0), (0.5, 0.35, 0.035), shade=0.7),
            Part("cone", (0, 0.37, 0), (0.035, 0.35, 0.5), shade=0.7),
            Part("cone", (0, 0.1, 0), (0.16, 0.1, 0.16), "metal"),
            Part("ellipsoid", (0.1, 0.78, 0.15), (0.085, 0.085, 0.085), "glass"),
        ),
        "rockets",
        rest=1.36,
    ),
    "boat": Noun(
        (
            Part("box", (-0.12, 0.13, 0), (0.34, 0.13, 0.19)),
            Part("cone", (0.36, 0.13, 0), (0.19, 0.14, 0.19), tilt=(0.0, -90.0)),
            Part("box", (-0.12, 0.27, 0), (0.36, 0.02, 0.21), "wood"),
            Part("cylinder", (0.02, 0.68, 0), (0.022, 0.42, 0.022), "wood"),
            Part("cone", (-0.03, 0.7, 0), (0.36, 0.36, 0.03), shade=0.9),
        ),
        "boats",
        rest=1.07,
        synonyms=("sailboat",),
    ),
}
