"""From configs to modules: the only place where a stored config becomes networks."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cascade.config import decode, encode
from cascade.denoiser import Denoiser
from cascade.networks.efficient_unet import EfficientUNet
from cascade.networks.unet import UNet, UNetConfig
from cascade.stage import Stage, StageConfig
from weights.store import StageFiles, check_tensors, read_config, read_stage


def build_stage(config: StageConfig) -> Stage:
    """A stage with new weights, on torch's default device ("meta" for a network without memory)."""
    network = UNet(config.network) if isinstance(config.network, UNetConfig) else EfficientUNet(config.network)
    return Stage(
        config, Denoiser(network, config.schedule, config.prediction, learned_variance=config.learned_variance)
    )


def load_config(folder: str | Path, name: str) -> StageConfig:
    """The config of a stage stored as ``name`` in a cascade's folder. Raises WeightsError or ConfigError."""
    return decode(StageConfig, read_config(folder, name), str(Path(folder) / name / "config.json"))


def load_stage(folder: str | Path, name: str, dtype: torch.dtype | None = None) -> Stage:
    """The stage stored as ``name`` in a cascade's folder, in eval mode; dtype None keeps the type of the file.

    Raises WeightsError or ConfigError, naming the file and what in it is missing, unexpected or misshapen.
    """
    config = load_config(folder, name)
    files = read_stage(folder, name)
    with torch.device("meta"):
        stage = build_stage(config)
    load_network(stage, files.tensors, str(Path(folder) / name / "model.safetensors"), dtype)
    return stage.eval()


def load_network(stage: Stage, tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype | None = None) -> None:
    """Put tensors in the place of a stage's weights, which may be on the meta device."""
    network = stage.denoiser.network
    check_tensors({name: tensor.shape for name, tensor in network.state_dict().items()}, tensors, where)
    network.load_state_dict({name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}, assign=True)


def stage_files(stage: Stage, dtype: torch.dtype | None = None) -> StageFiles:
    """What `load_stage` reads back, bit for bit unless ``dtype`` rounds it."""
    tensors = stage.denoiser.network.state_dict()
    return StageFiles(
        encode(stage.config), {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    )


def stage_folder(number: int, config: StageConfig) -> str:
    """The name of a stage's folder: stage-0-base-64."""
    return f"stage-{number}-{config.name}"
