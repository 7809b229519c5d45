"""Scenes to pictures: rays against boxes, ellipsoids, cylinders and cones in closed form, batched in torch.

Legend: S scenes, P primitives of all scenes together, T tiles of a picture, R rays of a tile (TILE * TILE *
supersample^2), Q pairs (primitive, tile of its scene) that can touch. Work is done for the pairs only. Points and
directions are kept as three separate tensors (x, y, z). Light is linear until the last step, sRGB after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cascade.data.toybox.camera import CAMERA
from cascade.data.toybox.packing import Packed, Triple, pack, triple
from cascade.data.toybox.scene import Scene
from cascade.data.toybox.shading import ambient_occlusion, backdrop, shade, transmittance

TILE = 8  # pixels along a tile's side
RAYS_AT_ONCE = {
    "cpu": 1 << 17,
    "cuda": 1 << 23,
}  # bounds the memory; on a CPU it also keeps the working set in its caches
FAR = 1e4


def render(
    scenes: Sequence[Scene],
    size: int | tuple[int, int],
    *,
    supersample: int = 2,
    crop: tuple[int, int, int, int] | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Pictures of `scenes`: float32 B 3 h w, RGB, in [-1, 1].

    `size` is the whole picture's side or (height, width) in pixels; its height always spans the same angle of view. A
    pixel is the mean of supersample x supersample rays. `crop` = (top, left, height, width) renders only that part of
    the whole picture.
    """
    height, width = (size, size) if isinstance(size, int) else size
    top, left, rows, columns = crop or (0, 0, height, width)
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > height or left + columns > width:
        raise ValueError(f"crop (top, left, height, width) {crop}: expected to lie within {height} x {width} pixels")
    if supersample < 1:
        raise ValueError(f"supersample {supersample}: expected 1 or more")
    device = torch.device(device)
    if not scenes:
        return torch.empty(0, 3, rows, columns, device=device)
    # Tiles start at multiples of TILE of the whole picture, so that a crop does the very arithmetic of the whole.
    first_row, last_row = top // TILE, -(-(top + rows) // TILE)
    first_column, last_column = left // TILE, -(-(left + columns) // TILE)
    across = last_column - first_column
    budget = RAYS_AT_ONCE.get(device.type, 1 << 20)
    tiles_at_once = max(across, budget // (TILE * TILE * supersample**2))
    band = max(1, min(last_row - first_row, tiles_at_once // across))
    group = max(1, tiles_at_once // (across * band))
    out = torch.empty(len(scenes), 3, (last_row - first_row) * TILE, across * TILE, device=device)
    for start in range(0, len(scenes), group):
        packed = pack(scenes[start : start + group], device)
        for row in range(first_row, last_row, band):
            end = min(row + band, last_row)
            picture = _render_tiles(packed, (height, width), supersample, (row, end, first_column, last_column))
            out[start : start + group, :, (row - first_row) * TILE : (end - first_row) * TILE] = picture
    top, left = top - first_row * TILE, left - first_column * TILE
    return out[:, :, top : top + rows, left : left + columns].contiguous()


def _render_tiles(packed: Packed, size: tuple[int, int], supersample: int, block: tuple[int, int, int, int]) -> Tensor:
    """The tiles of rows block[0]:block[1] and columns block[2]:block[3], as S 3 h w in [-1, 1]."""
    row, row_end, column, column_end = block
    scenes, tiles = packed.scenes, (row_end - row) * (column_end - column)
    eye = CAMERA.eye
    rays = camera_rays(size, supersample, block, packed.centre.device)  # three of T R
    rays_per_tile = rays[0].shape[1]
    scene, tile, primitive = _visible_pairs(packed, size, block)  # Q each
    near = torch.full((scenes * tiles, rays_per_tile), FAR, device=rays[0].device)
    who = torch.full(near.shape, -1, dtype=torch.int32, device=near.device)
    for members in packed.by_kind_and_slot(primitive):
        which = primitive[members]
        origin, direction = packed.to_unit(which, eye, triple(r[tile[members]] for r in rays))
        enter, leave = interval(packed.kind_of(which), origin, direction)
        cell = scene[members] * tiles + tile[members]
        old = near[cell]
        closer = (enter <= leave) & (enter < old) & (enter > 0)
        near[cell] = torch.where(closer, enter, old)
        who[cell] = torch.where(closer, which[:, None].to(torch.int32), who[cell])
    pixel_angle = 2.0 * CAMERA.tan_half / size[0]
    near, who = near.view(scenes, tiles, -1), who.view(scenes, tiles, -1)
    colour = _shade_tiles(packed, rays, near, who, pixel_angle)  # three of S T R
    s, t = supersample, TILE
    picture = torch.stack(colour, dim=1).clamp_(0.0, 1.0)  # S 3 T R
    picture = picture.view(scenes, 3, tiles, t * t, s * s).mean(dim=-1)
    picture = picture.view(scenes, 3, row_end - row, column_end - column, t, t).transpose(3, 4)  # S 3 rows t columns t
    picture = picture.reshape(scenes, 3, (row_end - row) * t, (column_end - column) * t)
    return encode_srgb(picture) * 2.0 - 1.0


def _shade_tiles(packed: Packed, rays: Triple, near: Tensor, who: Tensor, pixel_angle: float) -> Triple:
    """Linear RGB of every ray, three of S T R, from the distance to what it meets (`near`) and what that is (`who`).

    A pixel is as wide as `pixel_angle` times the distance.
    """
    hit = who >= 0
    down = rays[1].clamp(max=-1e-4)
    # Rays over the horizon end far away on the floor, where the backdrop has long covered it.
    distance = torch.where(hit, near, (-CAMERA.eye[1] / down).clamp(max=60.0))
    point = triple(e + distance * d for e, d in zip(CAMERA.eye, rays, strict=True))  # three of S T R
    lit = transmittance(packed, point, who, interval)
    colour = list(backdrop(packed, rays, point, lit, ambient_occlusion(packed, point)))
    scene, tile, ray = hit.nonzero(as_tuple=True)
    which = who[scene, tile, ray].long()
    at = triple(axis[scene, tile, ray] for axis in point)
    view = triple(axis[tile, ray] for axis in rays)
    shaded = shade(packed, which, at, view, lit[scene, tile, ray], pixel_angle * near[scene, tile, ray])
    for channel, value in zip(colour, shaded, strict=True):
        channel[scene, tile, ray] = value
    return colour[0], colour[1], colour[2]


def camera_rays(
    size: tuple[int, int], supersample: int, block: tuple[int, int, int, int], device: torch.device
) -> Triple:
    """Unit directions of a block of tiles' rays, three of T R; in a tile by row, column, sub-row, sub-column."""
    height, width = size
    row, row_end, column, column_end = block
    sub = (torch.arange(supersample, dtype=torch.float64) + 0.5) / supersample
    y = torch.arange(row * TILE, row_end * TILE, dtype=torch.float64).view(-1, 1, TILE, 1, 1, 1) + sub.view(-1, 1)
    x = torch.arange(column * TILE, column_end * TILE, dtype=torch.float64).view(1, -1, 1, TILE, 1, 1) + sub
    up = (1.0 - 2.0 * y / height) * CAMERA.tan_half
    right = (2.0 * x - width) / height * CAMERA.tan_half
    axes = torch.from_numpy(CAMERA.axes())
    rays = right[..., None] * axes[0] + up[..., None] * axes[1] + axes[2]  # rows columns TILE TILE s s 3
    rays = (rays / rays.norm(dim=-1, keepdim=True)).flatten(2, 5).flatten(0, 1).to(torch.float32).to(device)
    return rays[..., 0].contiguous(), rays[..., 1].contiguous(), rays[..., 2].contiguous()


def _visible_pairs(packed: Packed, size: tuple[int, int], block: tuple[int, int, int, int]) -> Triple:
    """Scene, tile and primitive of every pair whose tile meets the primitive's bounding box in the picture; Q each."""
    height, width = size
    row, row_end, column, column_end = block
    left, top, right, bottom = packed.picture_box.unbind(
        1
    )  # P each, in units of half the picture's height about its centre
    half = height / 2.0
    x = torch.arange(column, column_end, device=left.device) * TILE
    y = torch.arange(row, row_end, device=left.device) * TILE
    in_x = (left[:, None] * half + width / 2 < x + TILE) & (right[:, None] * half + width / 2 > x)
    in_y = (top[:, None] * half + half < y + TILE) & (bottom[:, None] * half + half > y)
    primitive, tile = (in_y[:, :, None] & in_x[:, None, :]).flatten(1).nonzero(as_tuple=True)
    return packed.scene_of[primitive], tile, primitive


def interval(kind: str, origin: Triple, direction: Triple) -> tuple[Tensor, Tensor]:
    """Where the line origin + t direction enters and leaves the unit shape `kind`, as t; enter > leave if it misses."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    if kind == "box":
        enter, leave = _slab(ox, dx)
        for o, d in ((oy, dy), (oz, dz)):
            low, high = _slab(o, d)
            enter, leave = torch.maximum(enter, low), torch.minimum(leave, high)
        return enter, leave
    if kind == "ellipsoid":
        return _roots(dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1.0)
    low, high = _slab(oy, dy)
    if kind == "cylinder":
        enter, leave = _roots(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - 1.0)
        return torch.maximum(enter, low), torch.minimum(leave, high)
    # The cone x^2 + z^2 = r^2 with r = (1 - y) / 2, and its mirror image beyond the apex, which |y| <= 1 cuts off.
    r, slope = 0.5 * (1.0 - oy), -0.5 * dy
    a = dx * dx + dz * dz - slope * slope
    a = torch.where(a.abs() < 1e-9, torch.full_like(a, 1e-9), a)
    b = ox * dx + oz * dz - r * slope
    c = ox * ox + oz * oz - r * r
    root = (b * b - a * c).clamp(min=0.0).sqrt()
    first, second = torch.minimum((-b - root) / a, (-b + root) / a), torch.maximum((-b - root) / a, (-b + root) / a)
    miss = b * b - a * c < 0.0
    # Shallow lines (a > 0) are inside between the roots; steep ones (a < 0) before the first or after the second root.
    shallow = a > 0.0
    downward = dy < 0.0  # a steep line that goes down enters the lower nappe at the second root and stays in it
    enter = torch.where(shallow, first, torch.where(downward, second, torch.full_like(a, -FAR)))
    leave = torch.where(shallow, second, torch.where(downward, torch.full_like(a, FAR), first))
    enter, leave = torch.maximum(enter, low), torch.minimum(leave, high)
    return torch.where(miss & shallow, torch.full_like(a, FAR), enter), leave


def _slab(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
    middle, half = -origin * inverse, inverse.abs()
    return middle - half, middle + half


def _roots(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The two roots of a t^2 + 2 b t + c, or (FAR, -FAR) where there are none."""
    inverse = 1.0 / a.clamp(min=1e-12)
    square = b * b - a * c
    root = square.clamp(min=0.0).sqrt()
    none = square < 0.0
    return ((-b - root) * inverse).masked_fill(none, FAR), ((-b + root) * inverse).masked_fill(none, -FAR)


def encode_srgb(linear: Tensor) -> Tensor:
    """Linear light in [0, 1] to sRGB in [0, 1]."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-6).pow(1.0 / 2.4) - 0.055)


def field_of_view() -> float:
    """The vertical angle of view in degrees."""
    return 2.0 * math.degrees(math.atan(CAMERA.tan_half))
