"""The embedded default: text to 64 px, 64 -> 256, small enough to train and to draw on two CPU cores."""

import math

from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.schedules import Cosine
from cascade.stage import Augmentation, Sampling, StageConfig

TOYBOX_TEXT_WIDTH = 192


def toybox_base() -> StageConfig:
    """The embedded default's 64 px base: small, and folded by 4 so that two CPU cores can train it.

    The schedule is shifted by 2 log(1/2) towards noise, where composition is decided.
    """
    return StageConfig(
        name="base-64",
        resolution=(64, 64),
        network=UNetConfig(
            width=32,
            multipliers=(3, 5),
            blocks=(2, 2),
            attention_levels=(0, 1),
            embedding_width=128,
            head_channels=80,
            text_width=TOYBOX_TEXT_WIDTH,
            patch=4,
            groups=8,
        ),
        schedule=Cosine(-12.0, 12.0, shift=-2 * math.log(2)),
        prediction="x",
        sampling=Sampling(steps=16, sampler="dpmpp_2m", guidance_scale=3.0),
    )


def toybox_sr256() -> StageConfig:
    """The embedded default's 64 -> 256 px super-resolution.

    It predicts x, which its low-resolution image already nearly is. It is guided: the caption alone tells materials. It
    may mend that image a little (aug_level); docs/quality.md has what more of it costs.
    """
    return StageConfig(
        name="sr-256",
        resolution=(256, 256),
        low_resolution=(64, 64),
        network=EfficientUNetConfig(
            width=64,
            multipliers=(1, 1, 2),
            blocks=(1, 2, 3),
            embedding_width=128,
            heads=4,
            text_width=TOYBOX_TEXT_WIDTH,
            patch=2,
            groups=8,
        ),
        schedule=Cosine(-12.0, 12.0),
        prediction="x",
        augmentation=Augmentation(Cosine(-12.0, 12.0), max_level=0.5),
        sampling=Sampling(steps=16, sampler="ddim", guidance_scale=4.0, aug_level=0.1),
    )
