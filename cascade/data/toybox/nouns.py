"""The toys: each noun is data, a few primitives (shapes.py) in a unit footprint, standing on y = 0."""

from __future__ import annotations

import itertools
import math

from cascade.data.toybox.shapes import Noun, Part, Vec3


def _spot(x: float, y: float, z: float, radius: float) -> Part:
    return Part("ellipsoid", (x, y, z), (radius, radius, radius), "cream")


def _wheel(x: float, z: float) -> Part:
    return Part("cylinder", (x, 0.12, z), (0.12, 0.05, 0.12), "tyre", tilt=(90.0, 0.0))


def _at(side: float, up: float, front: float) -> Vec3:
    """A place by the diagonal that looks at the viewer at the middle yaw: `side` is right of it, `front` along it."""
    return ((side - front) * math.sqrt(0.5), up, (side + front) * math.sqrt(0.5))


def _slab(centre: Vec3, half: Vec3, paint: str = "body", shade: float = 1.0) -> Part:
    """A box that faces along that diagonal; `half` is (side, up, front)."""
    return Part("box", centre, (half[1], half[2], half[0]), paint, shade, tilt=(45.0, 90.0))


def _rod(
    start: Vec3, end: Vec3, radius: float, paint: str = "body", shade: float = 1.0, kind: str = "cylinder"
) -> Part:
    """A round part whose axis runs from `start` to `end` (a cone's apex, the tip of an ellipsoid)."""
    (x, y, z), (dx, dy, dz) = start, (b - a for a, b in zip(start, end, strict=True))
    length = math.hypot(dx, dy, dz)
    tilt = math.degrees(math.asin(dz / length)), math.degrees(math.atan2(-dx, dy))
    return Part(kind, (x + dx / 2, y + dy / 2, z + dz / 2), (radius, length / 2, radius), paint, shade, tilt)


def _ball(centre: Vec3, radius: float, paint: str = "body", shade: float = 1.0) -> Part:
    return Part("ellipsoid", centre, (radius, radius, radius), paint, shade)


def _pipe(places: tuple[tuple[float, float], ...], radius: float, shade: float) -> tuple[Part, ...]:
    """A handle: rods from place to place (side, up), each a little longer so that the bends close."""
    rods = []
    for (side, up), (to_side, to_up) in itertools.pairwise(places):
        more = 0.3 * radius / math.hypot(to_side - side, to_up - up)
        x, y = more * (to_side - side), more * (to_up - up)
        rods.append(_rod(_at(side - x, up - y, 0), _at(to_side + x, to_up + y, 0), radius, shade=shade))
    return tuple(rods)


def _tower(x: float, z: float, radius: float, height: float) -> tuple[Part, ...]:
    """A round tower; its battlements are two bars across the top."""
    return (
        Part("cylinder", (x, height / 2, z), (radius, height / 2, radius)),
        Part("box", (x, height, z), (1.1 * radius, 0.08, 0.33 * radius), shade=0.9),
        Part("box", (x, height, z), (0.33 * radius, 0.08, 1.1 * radius), shade=0.9),
    )


_PARTS: dict[str, tuple[Part, ...]] = {
    "cube": (Part("box", (0, 0.45, 0), (0.45, 0.45, 0.45)),),
    "ball": (Part("ellipsoid", (0, 0.5, 0), (0.5, 0.5, 0.5)),),
    "cone": (Part("cone", (0, 0.58, 0), (0.45, 0.58, 0.45)),),
    "cylinder": (Part("cylinder", (0, 0.55, 0), (0.36, 0.55, 0.36)),),
    "car": (
        Part("box", (0, 0.24, 0), (0.5, 0.13, 0.26)),
        Part("box", (-0.05, 0.46, 0), (0.28, 0.12, 0.22), shade=0.92),
        Part("box", (-0.05, 0.46, 0), (0.21, 0.07, 0.235), "glass"),
        Part("box", (-0.05, 0.46, 0), (0.295, 0.07, 0.16), "glass"),
        *(_wheel(x, z) for z in (0.24, -0.24) for x in (-0.28, 0.28)),
        *(Part("ellipsoid", (0.49, 0.27, z), (0.03, 0.045, 0.045), "lamp") for z in (0.16, -0.16)),
    ),
    "house": (
        Part("box", (0, 0.28, 0), (0.4, 0.28, 0.4)),
        Part("box", (0, 0.56, 0), (0.283, 0.283, 0.4), tilt=(0.0, 45.0)),
        Part("box", (0.2425, 0.76, 0), (0.35, 0.03, 0.47), shade=0.62, tilt=(0.0, -45.0)),
        Part("box", (-0.2425, 0.76, 0), (0.35, 0.03, 0.47), shade=0.62, tilt=(0.0, 45.0)),
        Part("box", (0, 0.15, 0.4), (0.09, 0.15, 0.012), "door"),
        *(Part("box", (x, 0.3, 0.4), (0.07, 0.08, 0.012), "lamp") for x in (-0.24, 0.24)),
        *(Part("box", (-0.4, 0.29, z), (0.012, 0.08, 0.08), "lamp") for z in (0.16, -0.16)),
    ),
    "tree": (
        Part("cylinder", (0, 0.26, 0), (0.085, 0.26, 0.085), "wood"),
        Part("ellipsoid", (0, 0.66, 0), (0.42, 0.28, 0.42)),
        Part("ellipsoid", (0.02, 0.98, -0.01), (0.3, 0.3, 0.3)),
        Part("ellipsoid", (0.22, 0.78, 0.14), (0.24, 0.22, 0.24)),
        Part("ellipsoid", (-0.22, 0.8, 0.1), (0.24, 0.22, 0.24)),
    ),
    "mushroom": (
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
    "rocket": (
        Part("cylinder", (0, 0.56, 0), (0.2, 0.42, 0.2)),
        Part("cone", (0, 1.19, 0), (0.2, 0.23, 0.2), shade=0.7),
        Part("cone", (0, 0.37, 0), (0.5, 0.35, 0.035), shade=0.7),
        Part("cone", (0, 0.37, 0), (0.035, 0.35, 0.5), shade=0.7),
        Part("cone", (0, 0.1, 0), (0.16, 0.1, 0.16), "metal"),
        Part("ellipsoid", (0.1, 0.78, 0.15), (0.085, 0.085, 0.085), "glass"),
    ),
    "boat": (
        Part("box", (-0.12, 0.13, 0), (0.34, 0.13, 0.19)),
        Part("cone", (0.36, 0.13, 0), (0.13, 0.14, 0.19), tilt=(0.0, -90.0)),
        Part("box", (-0.12, 0.27, 0), (0.36, 0.02, 0.21), "wood"),
        Part("cylinder", (0.02, 0.68, 0), (0.022, 0.42, 0.022), "wood"),
        Part("cone", (-0.03, 0.7, 0), (0.36, 0.36, 0.03), shade=0.9),
    ),
    "snowman": (
        Part("ellipsoid", (0, 0.34, 0), (0.42, 0.34, 0.42)),
        _ball((0, 0.78, 0), 0.3),
        _ball((0, 1.11, 0), 0.22),
        Part("cylinder", (0, 1.25, 0), (0.27, 0.02, 0.27), "coal"),
        Part("cylinder", (0, 1.35, 0), (0.17, 0.1, 0.17), "coal"),
        _rod(_at(0, 1.1, 0.19), _at(0, 1.08, 0.45), 0.06, "bill", kind="cone"),
        *(_ball(_at(side, 1.16, 0.195), 0.035, "coal") for side in (-0.09, 0.09)),
        *(_ball(_at(0, up, 0.29), 0.038, "coal") for up in (0.72, 0.86)),
        *(_rod(_at(0.4 * side, 0.84, 0), _at(side, 1.04, 0.08), 0.026, "wood") for side in (-0.6, 0.6)),
    ),
    "duck": (
        Part("ellipsoid", (0.08, 0.28, 0), (0.4, 0.28, 0.31)),
        _rod((0.28, 0.36, 0), (0.52, 0.64, 0), 0.17, kind="cone"),
        Part("ellipsoid", (-0.11, 0.5, 0), (0.17, 0.22, 0.16)),
        _ball((-0.12, 0.78, 0), 0.24),
        Part("ellipsoid", (-0.38, 0.73, 0), (0.15, 0.05, 0.12), "bill"),
        *(_ball((-0.27, 0.85, z), 0.038, "coal") for z in (-0.155, 0.155)),
        *(Part("ellipsoid", (0.15, 0.34, z), (0.22, 0.13, 0.07), shade=0.8, tilt=(0.0, 15.0)) for z in (-0.28, 0.28)),
    ),
    "table": (
        Part("box", (0, 0.64, 0), (0.5, 0.05, 0.36)),
        *(Part("box", (x, 0.3, z), (0.05, 0.3, 0.05), shade=0.8) for x in (-0.42, 0.42) for z in (-0.28, 0.28)),
    ),
    "chair": (
        Part("box", (0, 0.45, 0), (0.45, 0.05, 0.42)),
        *(Part("box", (x, 0.21, 0.36), (0.06, 0.21, 0.06), shade=0.8) for x in (-0.39, 0.39)),
        *(Part("box", (x, 0.62, -0.36), (0.06, 0.62, 0.06), shade=0.8) for x in (-0.39, 0.39)),
        Part("box", (0, 1.12, -0.36), (0.42, 0.13, 0.04)),
        Part("box", (0, 0.79, -0.36), (0.36, 0.07, 0.03)),
    ),
    "cup": (
        Part("cylinder", _at(-0.1, 0.36, 0), (0.38, 0.36, 0.38)),
        Part("cylinder", _at(-0.1, 0.715, 0), (0.32, 0.01, 0.32), "coffee"),
        *_pipe(((0.24, 0.58), (0.46, 0.57), (0.58, 0.45), (0.57, 0.29), (0.44, 0.18), (0.24, 0.16)), 0.055, 0.9),
    ),
    "robot": (
        _slab(_at(0, 0.54, 0), (0.28, 0.26, 0.19)),
        _slab(_at(0, 1.0, 0), (0.23, 0.18, 0.18)),
        *(_slab(_at(side, 0.15, 0.02), (0.1, 0.15, 0.15), shade=0.7) for side in (-0.15, 0.15)),
        *(_slab(_at(side, 0.55, 0.02), (0.07, 0.22, 0.08), shade=0.7) for side in (-0.37, 0.37)),
        _rod((0, 1.15, 0), (0, 1.3, 0), 0.025, "metal"),
        _ball((0, 1.33, 0), 0.06, shade=0.7),
        *(_rod(_at(side, 1.05, 0.15), _at(side, 1.05, 0.2), 0.075, "lamp") for side in (-0.11, 0.11)),
        *(_ball(_at(side, 1.05, 0.2), 0.035, "coal") for side in (-0.11, 0.11)),
        _slab(_at(0, 0.89, 0.18), (0.12, 0.025, 0.01), "coal"),
        _slab(_at(0, 0.58, 0.19), (0.16, 0.12, 0.01), "metal"),
    ),
    "lamp": (
        Part("cylinder", (0, 0.04, 0), (0.28, 0.04, 0.28), shade=0.8),
        Part("cylinder", (0, 0.45, 0), (0.035, 0.45, 0.035), "metal"),
        *(Part("cylinder", (0, 0.78 + 0.09 * k, 0), (0.46 - 0.045 * k, 0.05, 0.46 - 0.045 * k)) for k in range(5)),
        Part("cylinder", (0, 1.19, 0), (0.22, 0.006, 0.22), "lamp"),
    ),
    "castle": (
        Part("box", (0, 0.22, 0), (0.36, 0.22, 0.36), shade=0.85),
        *(part for x in (-0.35, 0.35) for z in (-0.35, 0.35) for part in _tower(x, z, 0.15, 0.66)),
        *_tower(0, 0, 0.2, 0.96),
        Part("box", (0, 0.14, 0.36), (0.1, 0.14, 0.012), "door"),
    ),
    "cactus": (
        Part("cylinder", (0, 0.12, 0), (0.24, 0.12, 0.24), "clay"),
        Part("cylinder", (0, 0.25, 0), (0.29, 0.05, 0.29), "clay"),
        Part("cylinder", (0, 0.7, 0), (0.17, 0.45, 0.17)),
        Part("ellipsoid", (0, 1.14, 0), (0.17, 0.17, 0.17)),
        _rod(_at(0, 0.6, 0), _at(-0.54, 0.6, 0), 0.1, kind="ellipsoid"),
        _rod(_at(-0.43, 0.5, 0), _at(-0.43, 1.06, 0), 0.11, kind="ellipsoid"),
        _rod(_at(0, 0.72, 0), _at(0.54, 0.72, 0), 0.1, kind="ellipsoid"),
        _rod(_at(0.43, 0.62, 0), _at(0.43, 1.16, 0), 0.11, kind="ellipsoid"),
        Part("ellipsoid", (0, 1.3, 0), (0.08, 0.06, 0.08), "blush"),
    ),
    "train": (
        _rod((-0.46, 0.46, 0), (0.1, 0.46, 0), 0.2),
        Part("box", (0.22, 0.53, 0), (0.19, 0.31, 0.24)),
        Part("box", (0.21, 0.86, 0), (0.26, 0.03, 0.3), shade=0.62),
        Part("box", (0.22, 0.66, 0), (0.1, 0.1, 0.25), "glass"),
        _rod((-0.49, 0.46, 0), (-0.4, 0.46, 0), 0.16, "metal"),
        Part("box", (-0.03, 0.22, 0), (0.46, 0.06, 0.2), "coal"),
        Part("cylinder", (-0.31, 0.7, 0), (0.065, 0.12, 0.065), shade=0.62),
        Part("cone", (-0.31, 0.76, 0), (0.14, 0.13, 0.14), shade=0.62, tilt=(180.0, 0.0)),
        _ball((-0.1, 0.64, 0), 0.09, shade=0.62),
        *(_rod((x, r, -0.24), (x, r, 0.24), r, "tyre") for x, r in ((-0.33, 0.13), (-0.06, 0.13), (0.24, 0.18))),
        Part("box", (-0.46, 0.13, 0), (0.1, 0.02, 0.2), "metal", tilt=(0.0, 50.0)),
    ),
    "airplane": (
        Part("ellipsoid", (0.02, 0.34, 0), (0.48, 0.19, 0.17)),
        Part("box", (-0.1, 0.3, 0), (0.14, 0.03, 0.52)),
        Part("box", (0.39, 0.39, 0), (0.08, 0.025, 0.23)),
        Part("box", (0.4, 0.53, 0), (0.08, 0.16, 0.025), shade=0.7, tilt=(0.0, -20.0)),
        Part("ellipsoid", (-0.08, 0.49, 0), (0.15, 0.1, 0.11), "glass"),
        Part("box", (-0.47, 0.34, 0), (0.012, 0.26, 0.035), "coal"),
        _ball((-0.46, 0.34, 0), 0.06, "metal"),
        *(_rod((-0.15, 0.1, z - 0.04), (-0.15, 0.1, z + 0.04), 0.1, "tyre") for z in (-0.18, 0.18)),
    ),
    "windmill": (
        Part("cone", (0, 0.62, 0), (0.46, 0.62, 0.46)),
        Part("cylinder", (0, 0.48, 0), (0.25, 0.48, 0.25)),
        Part("cone", (0, 1.1, 0), (0.28, 0.16, 0.28), shade=0.62),
        _slab(_at(0, 0.13, 0.36), (0.09, 0.13, 0.07), "door"),
        _rod(_at(0, 0.88, 0.1), _at(0, 0.88, 0.34), 0.055, "wood"),
        _slab(_at(0, 0.88, 0.3), (0.02, 0.46, 0.015), "wood"),
        _slab(_at(0, 0.88, 0.3), (0.46, 0.02, 0.015), "wood"),
        *(_slab(_at(-s * 0.08, 0.88 - s * 0.27, 0.3), (0.08, 0.19, 0.01), "cream") for s in (-1, 1)),
        *(_slab(_at(s * 0.27, 0.88 - s * 0.08, 0.3), (0.19, 0.08, 0.01), "cream") for s in (-1, 1)),
    ),
    "teapot": (
        Part("ellipsoid", (0, 0.36, 0), (0.36, 0.32, 0.36)),
        Part("cylinder", (0, 0.04, 0), (0.22, 0.04, 0.22), shade=0.8),
        Part("ellipsoid", (0, 0.64, 0), (0.22, 0.09, 0.22), shade=0.8),
        _ball((0, 0.76, 0), 0.07),
        _rod(_at(-0.24, 0.26, 0), _at(-0.56, 0.5, 0), 0.08),
        _rod(_at(-0.52, 0.44, 0), _at(-0.66, 0.7, 0), 0.055),
        *_pipe(((0.26, 0.58), (0.5, 0.6), (0.62, 0.47), (0.56, 0.28), (0.3, 0.2)), 0.045, 0.8),
    ),
    "rabbit": (
        Part("ellipsoid", _at(0, 0.31, -0.06), (0.35, 0.31, 0.35)),
        _ball(_at(0, 0.74, 0.04), 0.26),
        *(_rod(_at(s * 0.09, 0.84, 0), _at(s * 0.19, 1.4, 0), 0.1, kind="ellipsoid") for s in (-1, 1)),
        *(
            _rod(_at(s * 0.115, 0.92, 0.06), _at(s * 0.18, 1.32, 0.06), 0.06, "blush", kind="ellipsoid")
            for s in (-1, 1)
        ),
        *(_ball(_at(side, 0.81, 0.25), 0.038, "coal") for side in (-0.12, 0.12)),
        Part("ellipsoid", _at(0, 0.69, 0.26), (0.095, 0.07, 0.095), "cream"),
        _ball(_at(0, 0.73, 0.34), 0.033, "coal"),
        *(
            _rod(_at(side, 0.09, 0.1), _at(side, 0.09, 0.46), 0.09, shade=0.9, kind="ellipsoid")
            for side in (-0.18, 0.18)
        ),
        _ball(_at(0.14, 0.18, -0.38), 0.11, "cream"),
    ),
    "hat": (
        Part("cylinder", (0, 0.035, 0), (0.5, 0.035, 0.5)),
        Part("cylinder", (0, 0.38, 0), (0.3, 0.35, 0.3)),
        Part("cylinder", (0, 0.15, 0), (0.31, 0.08, 0.31), "metal"),
        Part("cylinder", (0, 0.7, 0), (0.33, 0.03, 0.33)),
    ),
    "bottle": (
        Part("cylinder", (0, 0.35, 0), (0.3, 0.35, 0.3)),
        Part("ellipsoid", (0, 0.69, 0), (0.295, 0.28, 0.295)),
        Part("cylinder", (0, 1.05, 0), (0.1, 0.25, 0.1)),
        Part("cylinder", (0, 1.2, 0), (0.125, 0.04, 0.125), shade=0.8),
        Part("cylinder", (0, 1.33, 0), (0.085, 0.05, 0.085), "wood"),
        Part("cylinder", (0, 0.38, 0), (0.305, 0.16, 0.305), "cream"),
    ),
}

NOUNS: dict[str, Noun] = {
    "cube": Noun(_PARTS["cube"], "cubes", 0.9),
    "ball": Noun(_PARTS["ball"], "balls", 0.97, ("sphere",)),
    "cone": Noun(_PARTS["cone"], "cones", 1.08),
    "cylinder": Noun(_PARTS["cylinder"], "cylinders", 1.1),
    "car": Noun(_PARTS["car"], "cars", 0.58, ("automobile",)),
    "house": Noun(_PARTS["house"], "houses", 1.0),
    "tree": Noun(_PARTS["tree"], "trees", 1.24),
    "mushroom": Noun(_PARTS["mushroom"], "mushrooms", 0.83, ("toadstool",)),
    "rocket": Noun(_PARTS["rocket"], "rockets", 1.36),
    "boat": Noun(_PARTS["boat"], "boats", 1.07, ("sailboat",)),
    "snowman": Noun(_PARTS["snowman"], "snowmen", 1.45),
    "duck": Noun(_PARTS["duck"], "ducks", 0.97),
    "table": Noun(_PARTS["table"], "tables", 0.69),
    "chair": Noun(_PARTS["chair"], "chairs", 0.5),
    "cup": Noun(_PARTS["cup"], "cups", 0.72, ("mug",)),
    "robot": Noun(_PARTS["robot"], "robots", 1.18),
    "lamp": Noun(_PARTS["lamp"], "lamps", 1.19),
    "castle": Noun(_PARTS["castle"], "castles", 1.04),
    "cactus": Noun(_PARTS["cactus"], "cacti", 1.32),
    "train": Noun(_PARTS["train"], "trains", 0.89, ("locomotive",)),
    "airplane": Noun(_PARTS["airplane"], "airplanes", 0.58, ("plane",)),
    "windmill": Noun(_PARTS["windmill"], "windmills", 1.22),
    "teapot": Noun(_PARTS["teapot"], "teapots", 0.8),
    "rabbit": Noun(_PARTS["rabbit"], "rabbits", 1.3, ("bunny",)),
    "hat": Noun(_PARTS["hat"], "hats", 0.73),
    "bottle": Noun(_PARTS["bottle"], "bottles", 1.37),
}
