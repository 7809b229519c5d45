"""Light: soft shadows, occlusion of the ambient light, surface normals and colours. The legend is that of render.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cascade.data.toybox.materials import LIFT, MATERIALS, texture
from cascade.data.toybox.packing import Packed, Triple, triple
from cascade.data.toybox.shapes import KINDS

SUN = 0.78  # of an upright white surface's brightness
AMBIENT = 0.36
SPECULAR, SHININESS = 0.22, 40.0
LIGHT_SLOPE = 0.085  # tangent of half the angle under which the light is seen: the penumbra grows by it
BEVEL = 0.022  # world width over which an edge looks rounded
POLE = 0.85  # the height, of an ellipsoid's, above which its texture lies flat on it
SHARPEST = 0.008  # world half-width of the sharpest shadow's edge


def transmittance(packed: Packed, point: Triple, who: Tensor, interval: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    """How much of the light reaches each point (three of S T R), in [0, 1]: S T R. `who` is the primitive that holds
    it, or -1.

    A primitive's outline in the light's plane is a polygon; the signed distance to it, in units of the penumbra's
    half-width at that distance from the blocker, is the covered share of the light.
    """
    scenes, tiles, rays = who.shape
    basis = packed.light_basis
    x, y, z = point
    u, v = (
        basis[:, k, 0, None, None] * x + basis[:, k, 1, None, None] * y + basis[:, k, 2, None, None] * z for k in (0, 1)
    )
    lit = torch.ones(scenes * tiles, rays, device=u.device)
    any_hit = (who >= 0).any(dim=2)  # S T
    scene, tile, primitive = _shadow_pairs(packed, u, v, y)
    cells = scene * tiles + tile
    flat = tuple(axis.reshape(scenes * tiles, rays) for axis in (u, v, x, y, z))
    who, any_hit = who.view(scenes * tiles, rays), any_hit.view(-1)
    for members in packed.by_kind_and_slot(primitive):
        which, cell = primitive[members], cells[members]
        pu, pv, px, py, pz = (axis[cell] for axis in flat)  # Q R
        cover = _cover(packed, which, (pu, pv), (px, py, pz))
        touched = any_hit[cell].nonzero(as_tuple=True)[0]
        if len(touched):
            # On objects, a primitive shadows neither itself nor what lies between it and the light.
            mine, some = which[touched], (px[touched], py[touched], pz[touched])
            towards = basis[packed.scene_of[mine], 2]
            direction = triple(towards[:, k, None].expand_as(some[k]) for k in range(3))
            enter, leave = interval(packed.kind_of(mine), *packed.to_unit(mine, some, direction))
            behind = (enter <= leave) & (leave < 2e-3)
            mask = behind | (who[cell[touched]] == mine[:, None])
            cover[touched] = cover[touched].masked_fill(mask, 0.0)
        lit[cell] = lit[cell] * (1.0 - cover)
    return lit.view(scenes, tiles, rays)


def _cover(packed: Packed, which: Tensor, light: tuple[Tensor, Tensor], point: Triple) -> Tensor:
    """The share of the light that primitives `which` (Q) cover at points (Q R), ignoring what is in front of what."""
    sides = packed.outline[which]  # Q K 3
    sides_used = 6 if packed.kind_of(which) == "box" else sides.shape[1]
    pu, pv = light
    clearance = torch.full_like(pu, -1e4)
    for k in range(sides_used):
        clearance = torch.maximum(
            clearance, sides[:, k, 0, None] * pu + (sides[:, k, 1, None] * pv - sides[:, k, 2, None])
        )
    px, py, pz = point
    towards = packed.light_basis[packed.scene_of[which], 2]  # Q 3
    lx, ly, lz = (towards[:, k, None] for k in range(3))
    centre, height = packed.centre[which], packed.height[which]
    # How far along the ray the blocker is: where the ray passes its axis, within the blocker's range of heights.
    along = ((centre[:, 0, None] - px) * lx + (centre[:, 2, None] - pz) * lz) / (lx * lx + lz * lz)
    nearest, farthest = (height[:, 0, None] - py) / ly, (height[:, 1, None] - py) / ly
    along = torch.minimum(torch.maximum(along, nearest), farthest)
    share = 0.5 - 0.5 * clearance / (LIGHT_SLOPE * along.clamp(min=0.0) + SHARPEST)
    share = share.clamp(0.0, 1.0)
    return share * share * (3.0 - 2.0 * share) * (farthest > 0.0)


def _shadow_pairs(packed: Packed, u: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scene, tile and primitive of the pairs in which the primitive can shadow some point of the tile; Q each."""
    scene_of = packed.scene_of
    box, height = packed.shadow_box, packed.height
    lowest = y.amin(dim=2)[scene_of]  # P T
    margin = (height[:, 1, None] - lowest) / packed.light_basis[scene_of, 2, 1, None] * LIGHT_SLOPE + SHARPEST
    overlap = margin > SHARPEST
    for k, axis in enumerate((u, v)):
        overlap &= axis.amin(dim=2)[scene_of] < box[:, k + 2, None] + margin
        overlap &= axis.amax(dim=2)[scene_of] > box[:, k, None] - margin
    primitive, tile = overlap.nonzero(as_tuple=True)
    return scene_of[primitive], tile, primitive


def ambient_occlusion(packed: Packed, point: Triple) -> Tensor:
    """The share of the ambient light that reaches floor points (three of S T R), with each thing taken as a ball."""
    x, _, z = point
    open_share = torch.ones_like(x)
    for n in range(packed.things.shape[1]):
        cx, cy, cz, radius = (packed.things[:, n, k, None, None] for k in range(4))
        square = (x - cx) ** 2 + cy * cy + (z - cz) ** 2
        # Of the light over a floor point, a ball at angle a to the upright takes cos(a) (radius / distance)^2.
        open_share = open_share * (1.0 - (cy * radius * radius * square.clamp(min=1e-4) ** -1.5).clamp(max=0.85))
    return open_share


def backdrop(packed: Packed, rays: Triple, point: Triple, lit: Tensor, open_share: Tensor) -> Triple:
    """Linear RGB of floor and backdrop, three of S T R: the floor fades into the horizon, and that into the zenith."""
    _, _, z = point
    rise = ((rays[1] + 0.04) / 0.14).clamp(0.0, 1.0)  # T R
    rise = rise * rise * (3.0 - 2.0 * rise)
    fade = ((-0.6 - z) / 5.0).clamp(0.0, 1.0)
    fade = fade * fade * (3.0 - 2.0 * fade)
    light = 0.30 * open_share + 0.70 * lit
    out = []
    for channel in range(3):
        floor, horizon, zenith = (packed.ground[:, k, channel, None, None] for k in range(3))
        far = horizon + (zenith - horizon) * rise
        near = floor * light
        out.append(near + (far - near) * fade)
    return out[0], out[1], out[2]


@dataclass(frozen=True)
class Surface:
    """Points on primitives, as three of H each."""

    normal: Triple  # unit and outward, in the world, with softened edges
    unit: Triple  # the point in unit coordinates
    gradient: Triple  # the normal in unit coordinates, of any length


def surface(packed: Packed, which: Tensor, at: Triple) -> Surface:
    """The surface of primitives `which` (H) at points `at` (three of H, in the world)."""
    m, half, centre = packed.inverse[which], packed.half[which], packed.centre[which]
    offset = [at[k] - centre[:, k] for k in range(3)]
    ux, uy, uz = (m[:, i, 0] * offset[0] + m[:, i, 1] * offset[1] + m[:, i, 2] * offset[2] for i in range(3))
    kind = packed.kinds[which]
    # How much each axis of a box faces outwards: 1 on its face, falling to 0 within BEVEL of the edge next to it.
    ramp = [_ramp(u, half[:, k]) for k, u in enumerate((ux, uy, uz))]
    box = [r * u.sign() for r, u in zip(ramp, (ux, uy, uz), strict=True)]
    radius = (ux * ux + uz * uz).sqrt().clamp(min=1e-6)
    rim = _ramp(radius, torch.minimum(half[:, 0], half[:, 2]))
    is_box, is_ball = kind == KINDS.index("box"), kind == KINDS.index("ellipsoid")
    is_cone = kind == KINDS.index("cone")
    # Gradients are in unit coordinates (n_world = M^T g); the ramps are meant in world lengths, hence the half sizes.
    base = is_cone & (uy < -1.0 + 1e-3)
    side_y = torch.where(is_cone, 0.5 * radius, ramp[1] * uy.sign() * half[:, 1])
    side_x = torch.where(is_cone, ux, ux / radius * rim * half[:, 0])
    side_z = torch.where(is_cone, uz, uz / radius * rim * half[:, 2])
    side_x, side_z = side_x.masked_fill(base, 0.0), side_z.masked_fill(base, 0.0)
    side_y = torch.where(base, -torch.ones_like(side_y), side_y)
    gx = torch.where(is_box, box[0] * half[:, 0], torch.where(is_ball, ux, side_x))
    gy = torch.where(is_box, box[1] * half[:, 1], torch.where(is_ball, uy, side_y))
    gz = torch.where(is_box, box[2] * half[:, 2], torch.where(is_ball, uz, side_z))
    nx, ny, nz = (m[:, 0, k] * gx + m[:, 1, k] * gy + m[:, 2, k] * gz for k in range(3))
    scale = (nx * nx + ny * ny + nz * nz).clamp(min=1e-20).rsqrt()
    return Surface((nx * scale, ny * scale, nz * scale), (ux, uy, uz), (gx, gy, gz))


def _ramp(unit: Tensor, half: Tensor) -> Tensor:
    """1 on the face |unit| = 1, 0 from BEVEL (or a fifth of a thin shape) inwards."""
    return (1.0 - (1.0 - unit.abs()) * half / torch.minimum(torch.full_like(half, BEVEL), 0.4 * half)).clamp(
        min=1e-4, max=1.0
    )


def shade(packed: Packed, which: Tensor, at: Triple, view: Triple, lit: Tensor, pixel: Tensor) -> Triple:
    """Linear RGB (three of H) of points on things: ambient light from above and off the floor, sun, and its gloss.

    `pixel` (H) is the width of a pixel at each point, in world units.
    """
    scene, thing = packed.scene_of[which], packed.thing_of[which]
    spot = surface(packed, which, at)
    nx, ny, nz = spot.normal
    vx, vy, vz = view
    towards = packed.light_basis[scene, 2]
    lx, ly, lz = towards.unbind(1)
    sun = (nx * lx + ny * ly + nz * lz).clamp(min=0.0)
    hx, hy, hz = lx - vx, ly - vy, lz - vz
    half_vector = (nx * hx + ny * hy + nz * hz).clamp(min=0.0) * (hx * hx + hy * hy + hz * hz).rsqrt()
    gloss = SPECULAR * lit * (sun > 0.0) * half_vector.pow(SHININESS)
    base, tall = packed.thing_base[scene, thing].unbind(1)
    low = ((at[1] - base) / tall).clamp(0.0, 1.0)
    ambient = AMBIENT * (0.72 + 0.28 * ny) * (0.6 + 0.4 * (low * 3.0).clamp(max=1.0))
    facing = (nx * vx + ny * vy + nz * vz).abs().clamp(max=1.0)
    rim = 0.05 * (1.0 - facing) ** 3
    light = ambient + SUN * lit * sun
    # A face that is seen at a slant spreads a pixel out, though only one way: hence not the whole of it.
    albedo = surface_albedo(packed, which, spot, pixel / facing.clamp(min=0.4))
    r, g, b = (albedo[:, k] * light + gloss + rim for k in range(3))
    return r, g, b


def surface_albedo(packed: Packed, which: Tensor, spot: Surface, blur: Tensor) -> Tensor:
    """H 3, linear: the albedo of primitives `which` with their textures, averaged over `blur` (H, world units)."""
    albedo = packed.albedo[which]
    if not packed.materials:
        return albedo
    number = packed.material[which]
    for name in packed.materials:
        hits = (number == MATERIALS.index(name)).nonzero(as_tuple=True)[0]
        mine, own = which[hits], albedo[hits]
        across, up, squeeze = _face_coordinates(packed, mine, spot, hits)
        change = packed.contrast[mine] * texture(name, across, up, blur[hits] / squeeze)
        albedo[hits] = (own + change[:, None] * (own + LIFT)).clamp(min=0.0)
    return albedo


def _face_coordinates(packed: Packed, which: Tensor, spot: Surface, hits: Tensor) -> Triple:
    """Places across and up the faces of primitives `which` at points `hits` (H of both), in world units.

    A face is what looks along the same of the primitive's axes (either way), flattened along it; but the sides of round
    shapes are rolled out. The third tensor is how much narrower things there are than in the coordinates.
    """
    half = packed.half[which]
    gradient = torch.stack([axis[hits] for axis in spot.gradient], dim=1)
    unit = torch.stack([axis[hits] for axis in spot.unit], dim=1)
    face = (gradient.abs() / half).argmax(dim=1)
    place, axes = unit * half, packed.face_axes[which, face]
    across, up = (place[:, 0] * a[:, 0] + place[:, 1] * a[:, 1] + place[:, 2] * a[:, 2] for a in axes.unbind(1))
    squeeze = torch.ones_like(up)
    side = (packed.rolled[which] & ~_on_cap(packed, which, unit, face)).nonzero(as_tuple=True)[0]
    if len(side):
        across[side], up[side], squeeze[side] = _rolled_out(packed, which[side], unit[side], half[side])
    return across, up, squeeze


def _on_cap(packed: Packed, which: Tensor, unit: Tensor, face: Tensor) -> Tensor:
    """H: whether points (H 3, unit coordinates) are on the flat end of a round shape, or near an ellipsoid's pole."""
    kind, y = packed.kinds[which], unit[:, 1]
    is_ball, is_cylinder = kind == KINDS.index("ellipsoid"), kind == KINDS.index("cylinder")
    return torch.where(is_ball, y.abs() > POLE, torch.where(is_cylinder, face == 1, y < -1.0 + 1e-3))


def _rolled_out(packed: Packed, which: Tensor, unit: Tensor, half: Tensor) -> Triple:
    """Like `_face_coordinates`, on the sides of round shapes: around and along the axis."""
    x, y, z = unit.unbind(1)
    kind = packed.kinds[which]
    is_ball, is_cone = kind == KINDS.index("ellipsoid"), kind == KINDS.index("cone")
    radius = (x * x + z * z).sqrt()
    widest = 0.5 * (half[:, 0] + half[:, 2])
    # Cells keep their number all around, so that they taper with the shape; they have their true width halfway up.
    true = torch.where(is_ball, 0.85, torch.where(is_cone, 0.75, 1.0))
    around = 2.0 * torch.atan(x / (radius + z).clamp(min=1e-6)) * true * widest
    tall = half[:, 1]
    along = torch.where(is_cone, y * (tall * tall + 0.25 * widest * widest).sqrt(), y * tall)
    along = torch.where(is_ball, torch.asin(y.clamp(-1.0, 1.0)) * 0.5 * (tall + widest), along)
    return around, along, (radius / true).clamp(min=0.25, max=1.0)
