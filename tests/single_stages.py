"""Stages of tiny networks with random weights, a base and two kinds of super-resolution, and what one draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cascade.build import build_stage
from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.randomness import Draws
from cascade.schedules import LinearBeta
from cascade.stage import Augmentation, Sampling, Stage, StageConfig
from conditioning.text import TextEmbedding

BASE = UNetConfig(32, (1, 2), (1, 1), (1,), 32, head_channels=32, text_width=16)
SR = EfficientUNetConfig(32, (1,), (1,), 32, heads=2, text_width=16)
SR3 = UNetConfig(32, (1, 1), (1, 1), (), 32, in_channels=6)
SAMPLING = Sampling(steps=3, guidance_scale=3.0, aug_level=0.3)


def base_config(side: int = 8, **changes: Any) -> StageConfig:
    return StageConfig(**{"name": "base", "resolution": (side, side), "network": BASE, "sampling": SAMPLING} | changes)


def sr_config(low: int = 8, ratio: int = 2, **changes: Any) -> StageConfig:
    side = low * ratio
    values = {
        "name": f"sr-{side}",
        "resolution": (side, side),
        "low_resolution": (low, low),
        "network": SR,
        "augmentation": Augmentation(),
        "sampling": SAMPLING,
    }
    return StageConfig(**values | changes)


def plain_sr_config(**changes: Any) -> StageConfig:
    """SR3: no text, no augmentation."""
    return sr_config(network=SR3, augmentation=None, schedule=LinearBeta(), **changes)


def built(config: StageConfig) -> Stage:
    """With random weights everywhere: output layers start at zero, where everything would agree with everything."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        stage = build_stage(config)
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return stage.eval()


def text(batch: int) -> TextEmbedding:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6)[None] < torch.tensor([6, 2, 4, 1, 5, 3])[:batch, None]
    return TextEmbedding(torch.randn(6, 6, 16, generator=generator)[:batch], mask)


def last(steps: Any) -> Tensor:
    return list(steps)[-1].z


def draw(stage: Stage, seeds: list[int], size: tuple[int, int] = (8, 8), **kwargs: Any) -> Tensor:
    if stage.config.network.text_width is not None:
        kwargs = {"text": text(len(seeds)), "null": TextEmbedding.null(len(seeds), 16)} | kwargs
    return last(stage.sample(Draws(seeds, 0), size, **kwargs))
