"""Imagen (Saharia et al. 2022, 2205.11487): text to 64 px, 64 -> 256, 256 -> 1024.

The paper's are the networks, the schedules and the prediction of eps. Filled in here: the embedding width of the two
Efficient U-Nets, which is the base's; the steps, which are those of Imagen Video before distillation (Ho et al. 2022);
and, where said, the guidance.
"""

from typing import Literal

from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.schedules import Cosine, LinearBeta
from cascade.stage import Augmentation, Sampling, StageConfig

T5_XXL_WIDTH = 4096


def imagen_base_2b() -> StageConfig:
    """Text to 64 px: ADM's U-Net, 512 wide, with attention at 32, 16 and 8 px to the image and the text.

    The guidance scale is ours (as DeepFloyd IF's): the paper's best FID on COCO is at 1.35, its pictures are not.
    """
    return StageConfig(
        name="base-64",
        resolution=(64, 64),
        network=UNetConfig(
            width=512,
            multipliers=(1, 2, 3, 4),
            blocks=(3, 3, 3, 3),
            attention_levels=(1, 2, 3),
            embedding_width=512,
            head_channels=64,
            text_width=T5_XXL_WIDTH,
        ),
        schedule=Cosine(),
        prediction="eps",
        sampling=Sampling(steps=256, sampler="ddpm", guidance_scale=7.0),
    )


def _efficient_unet(attention: Literal["joint", "text"]) -> EfficientUNetConfig:
    return EfficientUNetConfig(
        width=128,
        multipliers=(1, 2, 4, 8),
        blocks=(2, 4, 8, 8),
        embedding_width=512,
        attention=attention,
        heads=8,
        text_width=T5_XXL_WIDTH,
    )


def imagen_sr256_600m() -> StageConfig:
    """64 -> 256 px. Guidance is that of the COCO figures, aug_level the middle of what looks best (0.1-0.3)."""
    return StageConfig(
        name="sr-256",
        resolution=(256, 256),
        low_resolution=(64, 64),
        network=_efficient_unet("joint"),
        schedule=Cosine(),
        prediction="eps",
        augmentation=Augmentation(Cosine()),
        sampling=Sampling(steps=128, sampler="ddpm", guidance_scale=8.0, aug_level=0.2),
    )


def imagen_sr1024_400m() -> StageConfig:
    """256 -> 1024 px. It attends to the text alone, so it can be trained on crops of 256 px (64 px at its input), as
    the paper does. Guidance and aug_level are those of the stage before.
    """
    return StageConfig(
        name="sr-1024",
        resolution=(1024, 1024),
        low_resolution=(256, 256),
        network=_efficient_unet("text"),
        schedule=LinearBeta(1e-4, 0.02, 1000),
        prediction="eps",
        augmentation=Augmentation(Cosine()),
        sampling=Sampling(steps=128, sampler="ddpm", guidance_scale=8.0, aug_level=0.2),
    )
