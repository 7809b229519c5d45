"""What a cascade needs of a device's memory, before anything is loaded: weights from configs and headers, what it works
on counted on the meta device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade.activations import peak_bytes, sampling_bytes
from cascade.stage import Stage
from pipelines.contents import Contents
from pipelines.upscaler import WEIGHTS, own_variant
from weights.shards import COMPONENTS, StoredTensors, find_files
from weights.store import read_json

DTYPES = (torch.float32, torch.bfloat16)  # float16 takes what bfloat16 takes


@dataclass(frozen=True)
class Part:
    """What is on the device at a time while offloading. Numbers of parameters: of all, of the largest layer, and of
    what stays with `enable_sequential_cpu_offload` (``anchor``). work: bytes beside the weights, by dtype.
    """

    name: str
    parameters: int
    layer: int
    anchor: int
    work: Mapping[torch.dtype, int]


def parts(contents: Contents, images: int, variant: str | None = None) -> list[Part]:
    """All parts of a cascade, in the order they are at work, drawing some images at a time. Raises WeightsError."""
    found = []
    tokens = 0 if contents.text is None else contents.text["max_length"]
    if contents.encoder is not None:
        found.append(_text_encoder(contents.encoder, images, tokens, variant))
    found += [_stage(stage, images, tokens) for stage in contents.stages]
    if contents.upscaler is not None:
        found.append(_upscaler(contents.upscaler, contents.stages[-1].config.resolution, variant))
    if contents.safety_checker is not None:
        stored = _headers(contents.safety_checker, ["safety_checker"], variant)
        found.append(Part("safety checker", *stored, 0, dict.fromkeys(DTYPES, 0)))
    return found


def describe_memory(found: Sequence[Part], images: int) -> str:
    """A table of the parts, and what each way to place them takes."""
    unit, size = ("GiB", 2**30) if on_the_device(found, DTYPES[0]) > 2**30 else ("MiB", 2**20)
    width = max(map(len, [*WAYS, *(part.name for part in found)]))
    head = "".join(f"{str(dtype).removeprefix('torch.'):>12}{'+ work':>9}" for dtype in DTYPES)
    lines = [f"{f'{unit}, {images} at a time':<{width}}{'parameters':>14}{head}"]
    for part in found:
        cells = "".join(
            f"{part.parameters * dtype.itemsize / size:>12.2f}{part.work[dtype] / size:>9.2f}" for dtype in DTYPES
        )
        lines.append(f"{part.name:<{width}}{part.parameters / 1e6:>12.1f} M{cells}")
    lines.append("")
    for way, need in WAYS.items():
        lines.append(f"{way:<{width + 14}}" + "".join(f"{need(found, dtype) / size:>12.2f}{'':9}" for dtype in DTYPES))
    lines += [
        "",
        "Beside this a GPU holds its context and the workspaces of its kernels. With either offload the weights are in",
        "the main memory: in the type of their file as pages of it, which the system may drop, else as copies.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def on_the_device(found: Sequence[Part], dtype: torch.dtype) -> int:
    """Bytes with all weights on the device."""
    return sum(part.parameters for part in found) * dtype.itemsize + max(part.work[dtype] for part in found)


def model_offload(found: Sequence[Part], dtype: torch.dtype) -> int:
    return max(part.parameters * dtype.itemsize + part.work[dtype] for part in found)


def sequential_offload(found: Sequence[Part], dtype: torch.dtype) -> int:
    return max((part.anchor + part.layer) * dtype.itemsize + part.work[dtype] for part in found)


WAYS: dict[str, Callable[[Sequence[Part], torch.dtype], int]] = {
    "all on the device": on_the_device,
    "enable_model_cpu_offload": model_offload,
    "enable_sequential_cpu_offload": sequential_offload,
}


def _stage(stage: Stage, images: int, tokens: int) -> Part:
    layers = [sum(p.numel() for p in module.parameters(recurse=False)) for module in stage.modules()]
    anchor = sum(p.numel() for p in stage.denoiser.network.noise_embedding.parameters())
    work = {dtype: sampling_bytes(stage.to(dtype), images, tokens) for dtype in DTYPES}
    return Part(stage.config.name, sum(layers), max(layers), anchor, work)


def _text_encoder(folder: Path, images: int, tokens: int, variant: str | None) -> Part:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    ids = torch.zeros(images, tokens, dtype=torch.long, device="meta")
    with torch.device("meta"):
        model = T5EncoderModel(T5Config.from_pretrained(folder / "text_encoder")).eval()
    work = _work(model, lambda: model(input_ids=ids))
    return Part("text encoder", *_headers(folder, ["text_encoder"], variant), 0, work)


def _upscaler(folder: Path, low: tuple[int, int], variant: str | None) -> Part:
    """One image at a time, both halves of guidance, then the decoder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet_config, vae_config, text = (read_json(folder / part / "config.json") for part in WEIGHTS)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(unet_config)
        vae: Any = AutoencoderKL.from_config(vae_config)

    def draw() -> None:
        kind = {"dtype": unet.dtype, "device": "meta"}
        latents = torch.empty(2, unet.config.in_channels, *low, **kind)
        words = torch.empty(2, text["max_position_embeddings"], unet.config.cross_attention_dim, **kind)
        level = torch.zeros(2, dtype=torch.long, device="meta")
        unet(latents, level[0], words, class_labels=level)
        vae.decode(torch.empty(1, vae.config.latent_channels, *low, **kind))

    work = _work(nn.ModuleList([unet.eval(), vae.eval()]), draw)
    return Part("upscaler", *_headers(folder, WEIGHTS, own_variant(folder, variant)), 0, work)


def _work(module: nn.Module, work: Callable[[], Any]) -> dict[torch.dtype, int]:
    return {dtype: peak_bytes(work, module.to(dtype).parameters()) for dtype in DTYPES}


def _headers(folder: Path, components: Sequence[str], variant: str | None) -> tuple[int, int]:
    """How many parameters are stored, and how many of one layer."""
    layers: Counter[str] = Counter()
    for part in components:
        with StoredTensors(find_files(folder / part, COMPONENTS[part], variant, optional=True)) as stored:
            for name, shape in stored.shapes.items():
                layers[f"{part}.{name.rpartition('.')[0]}"] += math.prod(shape)
    return layers.total(), max(layers.values())
