"""What toys are made of: procedural textures fine enough to be seen in a 256 px picture and gone in a 64 px one.

A texture is a function of a place on a face, (`across`, `up`) in world units, and of `blur`, the width in world units
over which it is averaged there; H each. It returns the relative change of the albedo at that place (H): of zero mean
over the face, mostly slightly positive, and negative in its details. The changes are averaged over the blur in closed
form wherever that exists, so that a texture fades out towards coarse pixels rather than alias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MATERIALS = ("plain", "metal", "brick", "denim", "wood", "tile", "checker")

BRIGHT = 0.3  # linear luminance; details are dark on colours above it, light below it, where there is room for them
LIFT = 0.045  # linear albedo that is added to a colour's own where a texture scales it, so that black shows it too
SHARPEST = 1e-3  # world units, the smallest blur: keeps the closed forms well above float32's rounding


def texture(material: str, across: Tensor, up: Tensor, blur: Tensor) -> Tensor:
    """The relative change of albedo (H) by a material other than plain, at places (H) in world units."""
    return TEXTURES[material](across, up, blur.clamp(min=SHARPEST))


def metal(across: Tensor, up: Tensor, blur: Tensor) -> Tensor:
    """Brushed: fine level streaks, each fading in and out along its length."""
    return 1.1 * _streaks(across, up, 0.4, 0.0092, blur)


def brick(across: Tensor, up: Tensor, blur: Tensor) -> Tensor:
    """Running bond: level courses of bricks of slightly different tones, parted by mortar."""
    length, height, mortar = 0.096, 0.046, 0.0098
    course = (up / height).floor()
    across = across + 0.5 * length * course
    joint = _joints(across, up, (length, height), mortar, blur)
    tone = _tone((across / length).floor(), course) * _fade(blur, height)
    return 0.75 * (_joint_share((length, height), mortar) - joint) + 0.11 * tone * (1.0 - joint)


def denim(across: Tensor, up: Tensor, blur: Tensor) -> Tensor:
    """Twill: diagonal ribs, each of staggered long stitches, over a fine uneven weave."""
    rise, run = 0.7071 * (up - across), 0.7071 * (up + across)
    period, length, rib, stitch = 0.040, 0.07, 0.017, 0.058
    stagger = 0.37 * length * (rise / period).floor()
    share = _pulse(rise, period, rib, blur) * _pulse(run + stagger, length, stitch, blur)
    weave = _streaks(across, up, 0.011, 0.011, blur)
    return 0.72 * (rib / period * stitch / length - share) + 0.35 * weave


def wood(across: Tensor, up: Tensor, blur: Tensor) -> Tensor:
    """Grain: upright rings of uneven width that waver, dark at one side and fading to the other, and fine streaks."""
    waver = 0.022 * torch.sin(4.3 * up + 2.0 * torch.sin(1.9 * up + 7.0 * across)) + 0.003 * torch.sin(31.0 * up)
    x = across + waver + 0.013 * torch.sin(29.0 * across + 1.0)
    period = 0.056
    ring = torch.zeros_like(x)
    for width in (0.008, 0.018, 0.033):
        ring += _pulse(x, period, width, blur) - width / period
    return -0.24 * ring + 0.5 * _streaks(up, x, 0.16, 0.0105, blur)


def tile(across: Tensor, up: Tensor, blur: Tensor) -> Tensor:
    """Square kitchen tiles of nearly the same tone, parted by straight lines of grout."""
    side, grout = 0.058, 0.0095
    joint = _joints(across, up, (side, side), grout, blur)
    tone = _tone((across / side).floor(), (up / side).floor()) * _fade(blur, side)
    return 0.75 * (_joint_share((side, side), grout) - joint) + 0.04 * tone * (1.0 - joint)


def checker(across: Tensor, up: Tensor, blur: Tensor) -> Tensor:
    """A chessboard."""
    side = 0.036
    columns, rows = (2.0 * _pulse(x, 2.0 * side, side, blur) - 1.0 for x in (across, up))
    return 0.34 * columns * rows


TEXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "metal": metal,
    "brick": brick,
    "denim": denim,
    "wood": wood,
    "tile": tile,
    "checker": checker,
}


def _pulse(x: Tensor, period: float, width: float, blur: Tensor) -> Tensor:
    """The share of [x - blur / 2, x + blur / 2] that stripes [0, width] + period * k cover."""
    ends = []
    for end in (x + 0.5 * blur, x - 0.5 * blur):
        count = (end / period).floor()
        ends.append(count * width + (end - count * period).clamp(max=width))
    return (ends[0] - ends[1]) / blur


def _joints(across: Tensor, up: Tensor, size: tuple[float, float], width: float, blur: Tensor) -> Tensor:
    """The covered share where lines of `width` part cells of `size`, one line to the left of and one below each."""
    return 1.0 - (1.0 - _pulse(across, size[0], width, blur)) * (1.0 - _pulse(up, size[1], width, blur))


def _joint_share(size: tuple[float, float], width: float) -> float:
    """The mean of `_joints`."""
    return 1.0 - (1.0 - width / size[0]) * (1.0 - width / size[1])


def _fade(blur: Tensor, size: float) -> Tensor:
    """1 where details of `size` are sharp, 0 where the blur is as large."""
    return (1.0 - blur / size).clamp(min=0.0)


def _tone(i: Tensor, j: Tensor) -> Tensor:
    """A number in [-1, 1] for each cell; neighbours in a row balance each other, so that no coarse blotches remain."""
    return _random(i, j) - _random(i + 1.0, j)


def _streaks(along: Tensor, over: Tensor, length: float, width: float, blur: Tensor) -> Tensor:
    """Smooth noise in [-1, 1] of streaks; those next to each other balance, so that no coarse blotches remain."""
    x, y = along / length, over / width
    i, j = x.floor(), y.floor()
    fx, fy = x - i, y - j
    fx = fx * fx * (3.0 - 2.0 * fx)
    rows = []
    for k in range(3):
        left, right = _random(i, j + k), _random(i + 1.0, j + k)
        rows.append(left + (right - left) * fx)
    return ((rows[0] - rows[1]) * (1.0 - fy) + (rows[1] - rows[2]) * fy) * _fade(blur, 3.0 * width)


def _random(i: Tensor, j: Tensor) -> Tensor:
    """A number in [0, 1) for each pair of whole numbers: integer arithmetic, so alike on every device."""
    bits = i.to(torch.int32) * 73856093 ^ j.to(torch.int32) * 19349663
    bits = (bits ^ (bits >> 15)) * 739982445
    bits = (bits ^ (bits >> 12)) * 695872825
    return ((bits >> 8) & 0xFFFF).to(torch.float32) * (1.0 / 65536.0)
