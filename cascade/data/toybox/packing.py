"""Scenes as flat arrays: every primitive of every scene, with what intersection, shadow and shading need of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade.data.toybox.camera import picture_boxes, reach
from cascade.data.toybox.description import COLOURS
from cascade.data.toybox.materials import BRIGHT, MATERIALS
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.scene import GROUNDS, LIGHTS, Scene
from cascade.data.toybox.shapes import KINDS, PAINTS

Triple = tuple[Tensor, Tensor, Tensor]
Array = NDArray[np.float64]

SHADOW_SIDES = 20  # half-planes around a primitive's outline as the light sees it
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green, blue
ROUND = np.linspace(0.0, 2.0 * np.pi, SHADOW_SIDES - 2, endpoint=False)


def triple(parts: Iterable[Tensor]) -> Triple:
    x, y, z = parts
    return x, y, z


@dataclass(frozen=True)
class Packed:
    """Primitives are ordered by kind, within a kind by slot (their number among their scene's of that kind)."""

    scenes: int
    kind: list[int]  # P, index into KINDS
    kinds: Tensor  # P, the same
    slot: list[int]  # P
    group_of: Tensor  # P, the number of the (kind, slot) pair, in order
    groups: int
    scene_of: Tensor  # P
    thing_of: Tensor  # P, number within the scene
    inverse: Tensor  # P 3 3, world offsets from the centre to unit coordinates
    centre: Tensor  # P 3
    half: Tensor  # P 3, world half sizes along the unit axes
    albedo: Tensor  # P 3, linear
    materials: tuple[str, ...]  # those that occur, without plain
    material: Tensor  # P, index into MATERIALS; fixed paints are plain
    contrast: Tensor  # P, the sign of the texture: 1 if its details are to be dark, -1 if light
    rolled: Tensor  # P, True for the round shapes whose sides are rolled out to be textured
    face_axes: Tensor  # P 3 2 3, by the axis across a face: unit vectors along the axes that run level and up in it
    picture_box: Tensor  # P 4, left top right bottom, in [-1, 1] within a square frame
    height: Tensor  # P 2, the lowest and highest y
    outline: Tensor  # P K 3, (cos, sin, offset) of half-planes in the light's plane: inside is below the offset
    shadow_box: Tensor  # P 4, the outline's bounds in the light's plane (low u, low v, high u, high v)
    light_basis: Tensor  # S 3 3, rows u, v, and the direction towards the light
    things: Tensor  # S N 4, centre and radius of each thing's bounding ball; radius 0 where there is none
    thing_base: Tensor  # S N 2, the height where a thing starts, and its own height
    ground: Tensor  # S 3 3, linear floor, horizon, zenith

    def kind_of(self, which: Tensor) -> str:
        return KINDS[self.kind[int(which[0])]]

    def by_kind_and_slot(self, primitive: Tensor) -> Iterator[slice]:
        """Runs of sorted `primitive` numbers that share a kind and, within it, touch each scene at most once."""
        ends = torch.bincount(self.group_of[primitive], minlength=self.groups).cumsum(0).tolist()
        start = 0
        for end in ends:
            if end > start:
                yield slice(start, end)
            start = end

    def to_unit(
        self, which: Tensor, origin: tuple[float, float, float] | Triple, direction: Triple
    ) -> tuple[Triple, Triple]:
        """Lines in the world (the directions Q R) to the unit coordinates of primitives `which` (Q)."""
        m = self.inverse[which]  # Q 3 3
        o = [axis - self.centre[which, k, None] for k, axis in enumerate(origin)]
        dx, dy, dz = direction
        turned = [m[:, i, 0, None] * dx + m[:, i, 1, None] * dy + m[:, i, 2, None] * dz for i in range(3)]
        moved = [m[:, i, 0, None] * o[0] + m[:, i, 1, None] * o[1] + m[:, i, 2, None] * o[2] for i in range(3)]
        return (moved[0], moved[1], moved[2]), (turned[0], turned[1], turned[2])


@cache
def _noun_arrays(noun: str) -> tuple[Array, Array, Array, Array, Array]:
    """(kind, frame n 3 3, centre n 3, fixed paint n 3, body shade n; 0 for a fixed paint) of a noun's parts."""
    parts = NOUNS[noun].parts
    return (
        np.array([KINDS.index(part.kind) for part in parts]),
        np.stack([part.frame() for part in parts]),
        np.array([part.centre for part in parts], dtype=np.float64),
        decode_srgb(np.array([PAINTS.get(part.paint, (0.0, 0.0, 0.0)) for part in parts])),
        np.array([part.shade if part.paint == "body" else 0.0 for part in parts]),
    )


def decode_srgb(colour: Array) -> Array:
    """sRGB in [0, 1] to linear light."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def light_basis(light: str) -> Array:
    """3 x 3, rows u, v and the unit direction towards the light, orthonormal."""
    towards = np.array(LIGHTS[light])
    towards = towards / np.linalg.norm(towards)
    u = np.cross(towards, [0.0, 0.0, 1.0])
    u /= np.linalg.norm(u)
    return np.stack([u, np.cross(towards, u), towards])


def pack(scenes: Sequence[Scene], device: torch.device) -> Packed:
    """Arrays of all primitives of `scenes`, on `device`."""
    kinds, frames, centres, albedos, scene_of, thing_of, materials, contrasts = [], [], [], [], [], [], [], []
    most = max(len(scene.things) for scene in scenes)
    things, base = np.zeros((len(scenes), most, 4)), np.zeros((len(scenes), most, 2))
    for s, scene in enumerate(scenes):
        for t, thing in enumerate(scene.things):
            kind, frame, centre, paint, shade = _noun_arrays(thing.look.noun)
            turn = thing.scale * thing.rotation()
            kinds.append(kind)
            frames.append(turn @ frame)
            centres.append(np.array(thing.position) + centre @ turn.T)
            colour = decode_srgb(np.array(COLOURS[thing.look.colour]))
            albedos.append(paint + shade[:, None] * colour)
            materials.append(np.where(shade > 0, MATERIALS.index(thing.look.material), 0))
            contrasts.append(np.full(len(kind), 1.0 if colour @ LUMINANCE > BRIGHT else -1.0))
            scene_of.append(np.full(len(kind), s))
            thing_of.append(np.full(len(kind), t))
            noun = NOUNS[thing.look.noun]
            x, y, z = thing.position
            things[s, t] = (x, y + 0.5 * noun.height * thing.scale, z, 0.25 * (noun.height + noun.width) * thing.scale)
            base[s, t] = (y, noun.height * thing.scale)
    kind, scene_at = np.concatenate(kinds), np.concatenate(scene_of)
    slot = _slots(kind, scene_at, len(scenes))
    order = np.lexsort((scene_at, slot, kind))
    kind, slot, scene_at = kind[order], slot[order], scene_at[order]
    frame, centre = np.concatenate(frames)[order], np.concatenate(centres)[order]
    basis = np.stack([light_basis(scene.light) for scene in scenes])
    outline, shadow_box = _outlines(kind, frame, centre, basis[scene_at])
    up = reach(kind, frame, np.array([0.0, 1.0, 0.0])), -reach(kind, frame, np.array([0.0, -1.0, 0.0]))
    group = np.unique(kind * (slot.max() + 1) + slot, return_inverse=True)[1]
    material = np.concatenate(materials)[order]
    ground = [[getattr(GROUNDS[scene.ground], name) for name in ("floor", "horizon", "zenith")] for scene in scenes]

    def floats(array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)

    def numbers(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    return Packed(
        scenes=len(scenes),
        kind=kind.tolist(),
        kinds=numbers(kind),
        slot=slot.tolist(),
        group_of=numbers(group),
        groups=int(group.max()) + 1,
        scene_of=numbers(scene_at),
        thing_of=numbers(np.concatenate(thing_of)[order]),
        inverse=floats(np.linalg.inv(frame)),
        centre=floats(centre),
        half=floats(np.linalg.norm(frame, axis=1)),
        albedo=floats(np.concatenate(albedos)[order]),
        materials=tuple(MATERIALS[number] for number in np.unique(material[material > 0])),
        material=numbers(material),
        contrast=floats(np.concatenate(contrasts)[order]),
        rolled=torch.from_numpy(_rolled(kind, frame)).to(device),
        face_axes=floats(_face_axes(frame)),
        picture_box=floats(picture_boxes(kind, frame, centre)),
        height=floats(np.stack([centre[:, 1] + up[1], centre[:, 1] + up[0]], axis=1)),
        outline=floats(outline),
        shadow_box=floats(shadow_box),
        light_basis=floats(basis),
        things=floats(things),
        thing_base=floats(base),
        ground=floats(decode_srgb(np.array(ground))),
    )


def _slots(kind: NDArray[np.int64], scene: NDArray[np.int64], scenes: int) -> NDArray[np.int64]:
    """The running number of each primitive among those of its kind in its scene."""
    slot = np.zeros_like(kind)
    seen: dict[tuple[int, int], int] = {}
    for p, key in enumerate(zip(kind.tolist(), scene.tolist(), strict=True)):
        slot[p] = seen.get(key, 0)
        seen[key] = int(slot[p]) + 1
    return slot


def _rolled(kind: NDArray[np.int64], frame: Array) -> NDArray[np.bool_]:
    """P: whether a primitive is round about its y axis, or nearly. Fins and sails are flat: they are not."""
    x, z = np.linalg.norm(frame, axis=1)[:, [0, 2]].T
    return (kind != KINDS.index("box")) & (np.minimum(x, z) > 0.5 * np.maximum(x, z))


def _face_axes(frame: Array) -> Array:
    """P 3 2 3: in each of a primitive's three faces, a level and the steepest direction, in the primitive's axes."""
    faces = np.eye(3)
    up = (frame[:, 1] / np.linalg.norm(frame, axis=1))[:, None] * (1.0 - faces)  # P 3 3
    steep = np.linalg.norm(up, axis=-1, keepdims=True)
    up = np.where(steep > 0.02, up / np.maximum(steep, 1e-9), np.roll(faces, -1, axis=0))  # any will do in a level face
    return np.stack([np.cross(faces, up), up], axis=2)


def _outlines(kind: NDArray[np.int64], frame: Array, centre: Array, basis: Array) -> tuple[Array, Array]:
    """P K 3 half-planes around each primitive in its light's plane, and the P 4 bounds of the outline there.

    For a box they are its exact outline, for the round kinds a many-sided one that holds the straight sides exactly.
    """
    towards = basis[:, 2]
    angles = np.tile(ROUND, (len(kind), 1))  # P K-2
    exact = np.zeros((len(kind), 6, 3))
    sides = np.cross(towards[:, None], np.swapaxes(frame, 1, 2))  # P 3 3: across each of the half axes
    box, cone = kind == KINDS.index("box"), kind == KINDS.index("cone")
    exact[:] = np.concatenate([sides, -sides], axis=1)
    # The straight sides of a cone: planes through the apex that touch the base and hold the light's direction.
    inverse = np.linalg.inv(frame)
    d = np.einsum("pij,pj->pi", inverse, towards)
    turn = np.arccos(np.clip(-0.5 * d[:, 1] / np.maximum(np.hypot(d[:, 0], d[:, 2]), 1e-9), -1.0, 1.0))
    for k, sign in enumerate((-1.0, 1.0)):
        phi = np.arctan2(d[:, 2], d[:, 0]) + sign * turn
        local = np.stack([np.cos(phi), np.full_like(phi, 0.5), np.sin(phi)], axis=1)
        exact[cone, k] = np.einsum("pji,pj->pi", inverse, local)[cone]
    exact[~box & ~cone, 0], exact[~box & ~cone, 1] = sides[~box & ~cone, 1], -sides[~box & ~cone, 1]
    flat = np.einsum("pki,pci->pkc", exact, basis[:, :2])  # P 6 2
    exact_angles = np.arctan2(flat[..., 1], flat[..., 0])
    angles = np.concatenate([angles, exact_angles[:, :2]], axis=1)
    angles[box] = np.resize(np.arange(6), SHADOW_SIDES)[None].repeat(box.sum(), 0)
    angles[box] = np.take_along_axis(exact_angles[box], angles[box].astype(int), axis=1)
    normals = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # P K 2
    world = np.einsum("pkc,pci->pki", normals, basis[:, :2])
    offset = np.einsum("pki,pi->pk", world, centre) + reach(kind, frame, world)
    bounds = []
    for sign in (-1.0, 1.0):
        for c in range(2):
            axis = sign * basis[:, c]
            bounds.append(sign * (np.einsum("pi,pi->p", axis, centre) + reach(kind, frame, axis)))
    return np.concatenate([normals, offset[..., None]], axis=-1), np.stack(bounds, axis=1)
