"""The one camera through which the world is seen, and what of it that camera shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.data.toybox.shapes import KINDS, Vec3, support

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole that looks from `eye` at `target`; `tan_half` is the tangent of half the vertical field of view."""

    eye: Vec3
    target: Vec3
    tan_half: float

    def axes(self) -> Array:
        """3 x 3, the rows are the camera's right, up and forward."""
        forward = np.array(self.target) - np.array(self.eye)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 1.0, 0.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def project(self, points: Array) -> Array:
        """World points (... x 3) to the picture (... x 2): x right, y down, both in [-1, 1] within a square frame."""
        right, up, depth = np.moveaxis((points - np.array(self.eye)) @ self.axes().T, -1, 0)
        return np.stack([right, -up], axis=-1) / (depth * self.tan_half)[..., None]


CAMERA = Camera(eye=(0.0, 2.35, 5.1), target=(0.0, 0.56, 0.0), tan_half=0.212)


def reach(kind: NDArray[np.int64], frame: Array, direction: Array) -> Array:
    """How far each primitive reaches from its centre along world `direction` (3, or P 3, or P K 3): P or P K."""
    local = np.einsum("...i,pij->p...j" if direction.ndim == 1 else "p...i,pij->p...j", direction, frame)
    out = np.empty(local.shape[:-1])
    for number, name in enumerate(KINDS):
        out[kind == number] = support(name, local[kind == number])
    return out


def picture_boxes(kind: NDArray[np.int64], frame: Array, centre: Array) -> Array:
    """P 4: left, top, right, bottom in the picture of the box around each primitive in camera axes.

    kind P (index into KINDS), frame P 3 3 (columns: the half axes in the world), centre P 3. The box around a primitive
    in camera axes, its reach along each, bounds its projection tighter than the corners of its own box do.
    """
    axes = CAMERA.axes()
    middle = centre @ axes.T
    high = middle + np.stack([reach(kind, frame, axis) for axis in axes], axis=1)
    low = middle - np.stack([reach(kind, frame, -axis) for axis in axes], axis=1)
    pick = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    corners = np.where(pick[None], high[:, None], low[:, None])  # P 8 3
    picture = CAMERA.project(corners @ axes)
    return np.concatenate([picture.min(axis=1), picture.max(axis=1)], axis=1)
