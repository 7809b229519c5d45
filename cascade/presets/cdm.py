"""CDM (Ho et al. 2021, 2106.15282): ImageNet by class, 32 -> 64 -> 256 px.

The paper's are the resolutions, the classes at every stage, Gaussian augmentation up to 64 px (section 4.3) and blur
above (section 4.4), no guidance. Its tables of hyperparameters were not at hand, so the rest is ours: for 32 and 64 px
ADM's ImageNet-64 network (Dhariwal & Nichol 2021; its authors' own in progressive distillation, Salimans & Ho 2022)
with the cosine schedule, for 256 px SR3's network and schedule. CDM's figures at 256 px took 8100 steps.
"""

from dataclasses import replace

from cascade.networks.unet import UNetConfig
from cascade.presets.sr3 import SAMPLING, SCHEDULE, sr3_unet
from cascade.schedules import Cosine
from cascade.stage import Augmentation, Sampling, StageConfig
from cascade.thresholding import Thresholding

CLASSES = 1000
ADM = UNetConfig(
    width=192,
    multipliers=(1, 2, 3, 4),
    blocks=(3, 3, 3, 3),
    attention_levels=(1, 2, 3),
    embedding_width=768,
    head_channels=64,
    classes=CLASSES,
    dropout=0.1,
)
ANCESTRAL = Sampling(steps=256, sampler="ddpm", thresholding=Thresholding("static"))


def cdm_32() -> StageConfig:
    """Class to 32 px; attention at 32, 16 and 8 px, as ADM's at 64."""
    return StageConfig(
        name="base-32",
        resolution=(32, 32),
        network=replace(ADM, attention_levels=(0, 1, 2)),
        schedule=Cosine(),
        prediction="eps",
        sampling=ANCESTRAL,
    )


def cdm_32_to_64() -> StageConfig:
    """32 -> 64 px, with noise of any level on the low-resolution image (non-truncated augmentation)."""
    return StageConfig(
        name="sr-64",
        resolution=(64, 64),
        low_resolution=(32, 32),
        network=replace(ADM, in_channels=6, augmented=True),
        schedule=Cosine(),
        prediction="eps",
        augmentation=Augmentation(Cosine()),
        sampling=ANCESTRAL,
    )


def cdm_64_to_256() -> StageConfig:
    """64 -> 256 px, with blur on half of the low-resolution images in training and none in sampling.

    Noise did harm here: what is left of it stays below the rounding of 8-bit images.
    """
    return StageConfig(
        name="sr-256",
        resolution=(256, 256),
        low_resolution=(64, 64),
        network=sr3_unet(256, 128, (1, 2, 4, 4, 8, 8), 3, classes=CLASSES, augmented=True),
        schedule=SCHEDULE,
        prediction="eps",
        augmentation=Augmentation(Cosine(), max_level=0.001, blur_sigma=(0.4, 0.6), blur_share=0.5),
        sampling=replace(SAMPLING, aug_level=0.0),
    )
