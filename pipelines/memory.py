"""What a cascade needs of a device's memory, before anything is loaded or fetched: its networks are built from their
configs on the meta device, and what they work on is counted there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade.activations import peak_bytes, sampling_bytes
from cascade.stage import Stage
from pipelines.contents import Contents
from weights.hub import resolve
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


def parts(contents: Contents, images: int) -> list[Part]:
    """All parts of a cascade, in the order they are at work, drawing some images at a time. Raises WeightsError."""
    tokens = 0 if contents.text is None else contents.text["max_length"]
    found = [] if contents.text is None else [_text_encoder(contents, images, tokens)]
    found += [_stage(stage, images, tokens) for stage in contents.stages]
    if contents.upscaler is not None:
        found.append(_upscaler(contents.upscaler, contents.stages[-1].config.resolution))
    if contents.safety_checker is not None:
        found.append(_safety_checker(contents.safety_checker))
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
    anchor = sum(p.numel() for p in stage.denoiser.network.noise_embedding.parameters())
    work = {dtype: sampling_bytes(stage.to(dtype), images, tokens) for dtype in DTYPES}
    return Part(stage.config.name, *_sizes(stage), anchor, work)


def _text_encoder(contents: Contents, images: int, tokens: int) -> Part:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    text, folder = contents.text or {}, contents.encoder
    if folder is None:
        folder = resolve(text["model"], revision=text.get("revision"), weights=False)
    config = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    with torch.device("meta"):
        model = T5EncoderModel(T5Config.from_pretrained(config)).eval()
    ids = torch.zeros(images, tokens, dtype=torch.long, device="meta")
    return Part("text encoder", *_sizes(model), 0, _work(model, lambda: model(input_ids=ids)))


def _upscaler(folder: Path, low: tuple[int, int]) -> Part:
    """One image at a time, both halves of guidance, then the decoder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    unet_config, vae_config = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    text = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(unet_config)
        vae: Any = AutoencoderKL.from_config(vae_config)
        encoder = CLIPTextModel(text)

    def draw() -> None:
        kind = {"dtype": unet.dtype, "device": "meta"}
        latents = torch.empty(2, unet.config.in_channels, *low, **kind)
        words = torch.empty(2, text.max_position_embeddings, unet.config.cross_attention_dim, **kind)
        level = torch.zeros(2, dtype=torch.long, device="meta")
        unet(latents, level[0], words, class_labels=level)
        vae.decode(torch.empty(1, vae.config.latent_channels, *low, **kind))

    work = _work(nn.ModuleList([unet.eval(), vae.eval()]), draw)
    return Part("upscaler", *_sizes(nn.ModuleList([unet, vae, encoder])), 0, work)


def _safety_checker(folder: Path) -> Part:
    from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
    from transformers.models.clip.configuration_clip import CLIPConfig

    with torch.device("meta"):
        model = IFSafetyChecker(CLIPConfig.from_pretrained(folder / "safety_checker"))
    return Part("safety checker", *_sizes(model), 0, dict.fromkeys(DTYPES, 0))


def _work(module: nn.Module, work: Callable[[], Any]) -> dict[torch.dtype, int]:
    return {dtype: peak_bytes(work, module.to(dtype).parameters()) for dtype in DTYPES}


def _sizes(module: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of the largest layer."""
    layers = (sum(p.numel() for p in each.parameters(recurse=False)) for each in module.modules())
    return sum(p.numel() for p in module.parameters()), max(layers)
