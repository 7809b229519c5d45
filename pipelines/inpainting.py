"""Inpainting: after every step, what is known is put back at the level just reached (as RePaint does)."""

from collections.abc import Callable

import torch
from torch import Tensor

from cascade.chain import Size
from cascade.randomness import Draws
from cascade.samplers import AfterStep
from conditioning.lowres import augment, downsample


def keep_known(known: Tensor, mask: Tensor) -> Callable[[int, Draws, Size], AfterStep]:
    """Hooks for `Cascade.sample`, one per stage.

    known: B 3 H W in [-1, 1] at the size of the result. mask: B 1 H W, 1 where something is to be drawn. A stage of a
    lower resolution draws wherever one of its pixels covers part of the hole.
    """

    def hook(stage: int, draws: Draws, size: Size) -> AfterStep:
        image = downsample(known, size)
        hole = (downsample(mask, size) > 0).float()

        def after_step(z: Tensor, logsnr: float) -> Tensor:
            noise = draws.normal("inpainting", (3, *size)).to(z.device)
            noised = augment(image.to(z.device), torch.full((len(z),), logsnr, device=z.device), noise)
            drawn = hole.to(z.device)
            return drawn * z + (1 - drawn) * noised

        return after_step

    return hook
