"""SR3 (Saharia et al. 2021, 2104.07636): super-resolution without text, told the noise level itself.

Widths, multipliers and blocks are table A.1's; residual sums are rescaled by 1/sqrt(2), T is 2000 and the level is
drawn between the steps too (section 2.4), so the schedule is continuous. Filled in here, after DDPM: attention at 16 px
with one head, and an embedding 4 times as wide as the network; after Palette (Saharia et al. 2022), of the same authors
and T: the range of the linear betas. SR3 searches a schedule of up to 100 steps by FID; this takes 100 even steps. The
low-resolution image is not augmented.
"""

from cascade.networks.unet import UNetConfig
from cascade.schedules import LinearBeta
from cascade.stage import Sampling, StageConfig
from cascade.thresholding import Thresholding

ATTENTION_AT = 16  # px
SCHEDULE = LinearBeta(1e-6, 0.01, 2000)
SAMPLING = Sampling(steps=100, sampler="ddpm", thresholding=Thresholding("static"), ddpm_variance=1.0)


def sr3_unet(
    side: int,
    width: int,
    multipliers: tuple[int, ...],
    blocks: int,
    *,
    dropout: float = 0.0,
    classes: int | None = None,
    augmented: bool = False,
) -> UNetConfig:
    """SR3's network for images of ``side`` px."""
    level = (side // ATTENTION_AT).bit_length() - 1
    return UNetConfig(
        width=width,
        multipliers=multipliers,
        blocks=(blocks,) * len(multipliers),
        attention_levels=(level,),
        embedding_width=4 * width,
        in_channels=6,
        head_channels=width * multipliers[level],
        classes=classes,
        augmented=augmented,
        dropout=dropout,
        residual_scale=2**-0.5,
    )


def _stage(low: int, side: int, network: UNetConfig) -> StageConfig:
    return StageConfig(
        name=f"sr-{side}",
        resolution=(side, side),
        low_resolution=(low, low),
        network=network,
        schedule=SCHEDULE,
        prediction="eps",
        sampling=SAMPLING,
    )


def sr3_16_to_128() -> StageConfig:
    """Faces, 16 -> 128 px: the only one with dropout (section 4)."""
    return _stage(16, 128, sr3_unet(128, 128, (1, 2, 4, 8, 8), 3, dropout=0.2))


def sr3_64_to_256() -> StageConfig:
    """Faces and ImageNet, 64 -> 256 px."""
    return _stage(64, 256, sr3_unet(256, 128, (1, 2, 4, 4, 8, 8), 3))


def sr3_64_to_512() -> StageConfig:
    """Faces, 64 -> 512 px."""
    return _stage(64, 512, sr3_unet(512, 64, (1, 2, 4, 8, 8, 16, 16), 3))


def sr3_256_to_1024() -> StageConfig:
    """Faces, 256 -> 1024 px. The widest level has 512 channels, the narrowest 16, and 16 groups to a norm."""
    return _stage(256, 1024, sr3_unet(1024, 16, (1, 2, 4, 8, 16, 32, 32, 32), 2))
