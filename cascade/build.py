"""From configs to modules: the only place where a stored config becomes networks."""

import torch

from cascade.denoiser import Denoiser
from cascade.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from cascade.networks.unet import UNet, UNetConfig
from cascade.stage import Stage, StageConfig


def build_stage(config: StageConfig) -> Stage:
    network = UNet(config.network) if isinstance(config.network, UNetConfig) else EfficientUNet(config.network)
    return Stage(
        config, Denoiser(network, config.schedule, config.prediction, learned_variance=config.learned_variance)
    )
