"""From configs to modules: the only place where a stored config becomes networks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascade.config import decode, encode
from cascade.denoiser import Denoiser
from cascade.networks.efficient_unet import EfficientUNet
from cascade.networks.unet import UNet, UNetConfig
from cascade.stage import Stage, StageConfig
from weights import deepfloyd, deepfloyd_export
from weights.deepfloyd_names import tensor_names
from weights.shards import DIFFUSERS, StoredTensors, find_files
from weights.store import StageFiles, WeightsError, check_tensors, read_config, read_stage


def build_stage(config: StageConfig) -> Stage:
    """A stage with new weights, on torch's default device ("meta" for a network without memory)."""
    network = UNet(config.network) if isinstance(config.network, UNetConfig) else EfficientUNet(config.network)
    denoiser = Denoiser(
        network,
        config.schedule,
        config.prediction,
        learned_variance=config.learned_variance,
        aug_schedule=None if config.augmentation is None else config.augmentation.schedule,
    )
    return Stage(config, denoiser)


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


def open_deepfloyd(
    folder: Path, variant: str | None = None, low_resolution: tuple[int, int] | None = None
) -> tuple[Stage, StoredTensors]:
    """A stage of DeepFloyd IF in diffusers' layout: without memory, and the stored tensors, which fit it.

    Only configs and headers are read. Raises WeightsError or ConfigError.
    """
    data = deepfloyd.read_stage_config(folder, None if low_resolution is None else list(low_resolution))
    config = decode(StageConfig, data, str(folder))
    try:
        with torch.device("meta"):
            stage = build_stage(config)
    except ValueError as error:
        raise WeightsError(
            f"{folder / 'unet' / 'config.json'} describes no network that can be built: {error}"
        ) from error
    stored = StoredTensors(find_files(folder / "unet", DIFFUSERS, variant))
    check_tensors(deepfloyd_shapes(stage), stored.shapes, stored.where)
    return stage, stored


def deepfloyd_shapes(stage: Stage) -> dict[str, tuple[int, ...]]:
    """The tensors of a stage as diffusers names and shapes them."""
    found = {}
    names = tensor_names(encode(stage.config)["network"])
    for ours, tensor in stage.denoiser.network.state_dict().items():
        for theirs in names[ours]:
            found[theirs] = (tensor.shape[0] // len(names[ours]), *tensor.shape[1:])
    return found


def fill_deepfloyd(stage: Stage, stored: StoredTensors, dtype: torch.dtype | None = None) -> Stage:
    """Put stored tensors, which are closed after, in the place of a stage's weights: there is never a second copy."""
    with stored:
        network = stage.denoiser.network
        network.load_state_dict(dict(deepfloyd_tensors(stage.config, stored, dtype)), assign=True)
    return stage.eval()


def deepfloyd_tensors(
    config: StageConfig, stored: StoredTensors, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors, one after the other, read from diffusers'."""
    for ours, theirs in tensor_names(encode(config)["network"]).items():
        parts = [stored.read(name) for name in theirs]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        yield ours, tensor.to(dtype or tensor.dtype)


def deepfloyd_files(config: StageConfig, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The way back: the configs of diffusers' components, and the tensors of its U-Net. Raises WeightsError."""
    data = encode(config)
    configs = deepfloyd_export.diffusers_configs(data)
    found = {}
    for ours, theirs in tensor_names(data["network"]).items():
        found |= zip(theirs, tensors[ours].chunk(len(theirs)), strict=True)
    return configs, found


def stage_files(stage: Stage, dtype: torch.dtype | None = None) -> StageFiles:
    """What `load_stage` reads back, bit for bit unless ``dtype`` rounds it."""
    tensors = stage.denoiser.network.state_dict()
    return StageFiles(
        encode(stage.config), {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    )


def stage_folder(number: int, config: StageConfig) -> str:
    """The name of a stage's folder: stage-0-base-64."""
    return f"stage-{number}-{config.name}"
