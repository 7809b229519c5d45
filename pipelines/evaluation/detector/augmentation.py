"""What the detector's pictures and crops go through before it learns from them: what spoils them, and what undoes them.

Spoilt, a thing is still what it was; melted or roughened, it may be no more. B images, T things at most in each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.data.toybox.materials import MATERIALS
from pipelines.evaluation.detector.corruptions import blur, coarsen, jpeg, noise, smooth_noise, warp
from pipelines.evaluation.detector.data import FIELDS
from pipelines.evaluation.detector.network import CROP, SEEN

WORLD_UNIT = SEEN / 2.3  # px
WARPED = 0.15  # of a thing's width, the strongest warp's standard deviation
UNSEEN = 0.4  # px; nobody sees that a thing is warped by less
RIPPLED = 0.8  # px; so little leaves a thing its form
TOLERANCE = 0.25  # the share of a thing that may be elsewhere before its form falls to 1 / e: a bent toy is still one
ROUGHENED = 0.5  # of the plain and the patterned crops
PATTERNS = torch.tensor([MATERIALS.index(name) for name in ("brick", "denim", "tile", "checker")])


@dataclass(frozen=True)
class Spoiling:
    """Chances, and the largest amounts, of what spoils pictures; blur in pixels, JPEG's quality its lowest."""

    blur: tuple[float, float]
    noise: tuple[float, float]
    jpeg: tuple[float, int]
    coarse: tuple[float, int]
    light: float


# At 128 px a blur is half as wide as at 256 px, and noise half as strong. Textures must stay readable in the crops.
PICTURES = Spoiling(blur=(0.4, 1.3), noise=(0.5, 0.06), jpeg=(0.15, 40), coarse=(0.3, 64), light=0.06)
CROPS = Spoiling(blur=(0.5, 1.2), noise=(0.5, 0.06), jpeg=(0.25, 45), coarse=(0.0, CROP), light=0.06)


def spoil(images: Tensor, how: Spoiling, rng: np.random.Generator) -> Tensor:
    """B 3 H W in [-1, 1] -> the same, most of them a little worse."""
    light = torch.from_numpy(rng.uniform(-how.light, how.light, (3, len(images), 3, 1, 1))).float()
    contrast, brightness, tint = light[0, :, :1], light[1, :, :1], 0.3 * light[2]
    images = (images * (1 + contrast) + brightness + tint).clamp_(-1, 1)

    def some(chance: float, change: Callable[[Tensor], Tensor]) -> None:
        chosen = torch.from_numpy(rng.random(len(images)) < chance)
        if chosen.any():
            images[chosen] = change(images[chosen])

    def amounts(most: float, part: Tensor) -> Tensor:
        return torch.from_numpy(rng.uniform(0, most, len(part))).float()

    grain = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    some(how.coarse[0], lambda part: coarsen(part, how.coarse[1]))
    some(how.blur[0], lambda part: blur(part, amounts(how.blur[1], part)))
    some(how.noise[0], lambda part: noise(part, amounts(how.noise[1], part), grain))
    some(how.jpeg[0], lambda part: jpeg(part, rng.integers(how.jpeg[1], 96, len(part)).tolist()))
    return images


def melt(pictures: Tensor, things: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Warps and smears many of the pictures, a little or beyond recognition: B 3 SEEN SEEN and B T FIELDS, as drawn.

    Hearts move along, and forms suffer by the share of a thing that is no longer where it should be.
    """
    count = len(pictures)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    right, form = FIELDS.index("right"), FIELDS.index("form")
    hearts_at = (things[..., right : right + 2] + 1) * (SEEN / 2)  # B T 2, px
    width = things[..., FIELDS.index("log_bulk")].exp() * WORLD_UNIT  # B T, px

    def amounts(chance: float, low: float, high: float) -> Tensor:
        """B 1 1 1; zero but for a chance."""
        drawn = rng.uniform(low, high, count) * (rng.random(count) < chance)
        return torch.from_numpy(drawn).float().view(-1, 1, 1, 1)

    def waves(channels: int, fewest: int, most: int) -> Tensor:
        return smooth_noise(count, channels, int(rng.integers(fewest, most)), SEEN, generator)

    relative = amounts(0.4, 0.0, WARPED**0.5).square()
    usual_width = width.nanmean(dim=1).nan_to_num(SEEN / 4).view(-1, 1, 1, 1)
    away = waves(2, 3, 13) * relative * usual_width  # B 2 SEEN SEEN, px
    ripples = waves(2, 20, 45) * amounts(0.5, 0.0, RIPPLED)
    blurs = torch.from_numpy(rng.uniform(2.0, 8.0, count)).float()
    smeared = (2.0 * waves(1, 2, 8) + amounts(1.0, -4.0, 2.0)).sigmoid() * amounts(0.3, 1.0, 1.0)  # B 1 SEEN SEEN
    spoilt = warp(pictures + smeared * (blur(pictures, blurs) - pictures), away + ripples)

    coarse = SEEN // 4  # cells, in which the things' extents are measured
    axis = (torch.arange(coarse) + 0.5) * (SEEN / coarse)
    middle = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).flatten(0, 1)  # HW 2
    far = (hearts_at[:, :, None] - middle).square().sum(dim=-1) / (0.35 * width[..., None]).square()
    within = (-0.5 * far).softmax(dim=-1)  # B T HW, of sum 1
    moved = F.avg_pool2d(away, SEEN // coarse).flatten(2)  # B 2 HW
    mean = torch.einsum("bcp,btp->btc", moved, within)
    variance = (torch.einsum("bcp,btp->btc", moved.square(), within) - mean.square()).mean(dim=-1)
    # A disc whose rim is displaced by this much on the average, in and out, has lost or won this share of its area.
    warped = 3.2 * (variance.clamp(min=0.0).sqrt() - UNSEEN).clamp(min=0.0) / width
    lost = torch.einsum("bp,btp->bt", F.avg_pool2d(smeared, SEEN // coarse).flatten(1), within)
    lost = lost * (4.0 * blurs[:, None] / width).clamp(max=1.0)
    things = things.clone()
    things[..., form] *= torch.exp(-(warped + lost) / TOLERANCE)
    image, which = (~width.isnan()).nonzero(as_tuple=True)
    at = hearts_at[image, which]
    for _ in range(3):  # what is seen at `at` comes from at + away(at): from where the heart was
        x, y = at.long().clamp(0, SEEN - 1).unbind(dim=1)
        at = hearts_at[image, which] - away[image, :, y, x]
    things[image, which, right : right + 2] = at / (SEEN / 2) - 1
    return spoilt, things


def roughen(crops: Tensor, materials: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Some plain crops with a grain, some patterned ones warped until no pattern is left: then they are of no material.

    crops: B 3 CROP CROP; materials: B indices into MATERIALS, of which none is one more.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    chosen = torch.from_numpy(rng.random(len(crops)) < ROUGHENED)
    plain = materials == MATERIALS.index("plain")
    grained, warped = chosen & plain, chosen & torch.isin(materials, PATTERNS)
    crops, materials = crops.clone(), materials.clone()
    if some := int(grained.sum()):
        coarse, fine = (smooth_noise(some, 1, int(rng.integers(8, 30)), CROP, generator) for _ in range(2))
        share = torch.from_numpy(rng.uniform(0, 1, (some, 1, 1, 1))).float()
        amount = torch.from_numpy(rng.uniform(0.03, 0.2, (some, 1, 1, 1))).float()
        radius = torch.from_numpy(rng.uniform(0.3, 2.0, (some, 1, 1, 1))).float()
        axis = torch.linspace(-1, 1, CROP)
        amount = amount * torch.exp(-(axis[:, None] ** 2 + axis**2) / radius**2)  # the thing is in the middle
        crops[grained] = (crops[grained] + amount * (share * coarse + (1 - share) * fine)).clamp(-1, 1)
    if some := int(warped.sum()):
        amount = torch.from_numpy(rng.uniform(1.2, 3.0, (some, 1, 1, 1))).float()
        crops[warped] = warp(crops[warped], amount * smooth_noise(some, 2, int(rng.integers(6, 16)), CROP, generator))
    materials[grained | warped] = len(MATERIALS)
    return crops, materials


def clouds(count: int, rng: np.random.Generator) -> Tensor:
    """Pictures of nothing, count 3 SEEN SEEN: noise of any scale."""
    out = []
    for _ in range(count):
        side = 2 ** int(rng.integers(1, 8))
        grain = torch.from_numpy(rng.normal(rng.uniform(-0.7, 0.7, (3, 1, 1)), rng.uniform(0.02, 0.8), (3, side, side)))
        out.append(F.interpolate(grain.float()[None], SEEN, mode="bicubic", align_corners=False)[0].clamp(-1, 1))
    return torch.stack(out)
