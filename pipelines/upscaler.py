"""Stage III: what enlarges finished images, such as Stable Diffusion x4, which DeepFloyd IF ends with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cascade.chain import Size
from conditioning.silence import no_progress_bars, no_torchvision_advice
from weights.shards import COMPONENTS, StoredTensors, find_files, has_weights
from weights.store import WeightsError, read_json

KIND = "StableDiffusionUpscalePipeline"
WEIGHTS = ("unet", "vae", "text_encoder")
CONFIGS = {
    **dict.fromkeys(WEIGHTS, "config.json"),
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
    "low_res_scheduler": "scheduler_config.json",
}


@dataclass(frozen=True)
class Upscaling:
    """How an upscaler draws. guidance_scale: 1 is off. aug_level: in [0, 1], how far it may depart from its input.

    The defaults are diffusers', and for aug_level DeepFloyd's: noise level 100 of 1000.
    """

    steps: int = 75
    guidance_scale: float = 9.0
    aug_level: float = 0.1


class Upscaler(Protocol):
    """(images, prompts) -> images. It reads the prompts itself, and may work in any way; a stage it is not.

    name: in progress bars. factor: by which it enlarges. modules: what holds its weights.
    """

    name: str
    factor: int
    modules: Sequence[nn.Module]

    def check(self, size: Size, settings: Upscaling) -> None:
        """Raise ValueError unless it can enlarge images of that size in that way."""
        ...

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | None,
        seeds: Sequence[int],
        settings: Upscaling,
        on_step: Callable[[], Any],
    ) -> Tensor:
        """Images B 3 H W in [-1, 1] on the CPU, enlarged; a prompt and a seed per image. on_step: called after each of
        the B x settings.steps steps.
        """
        ...

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None: ...

    def save_pretrained(self, folder: Path) -> None: ...


class StableDiffusionUpscaler:
    """diffusers' StableDiffusionUpscalePipeline. An image of seed s is the one that diffusers draws with
    `torch.Generator().manual_seed(s)`, whatever batch it is in: at 256 px and more one image fills a device, so they
    are enlarged one by one, in the memory that one takes.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.factor: int = pipe.vae_scale_factor
        self.name = f"x{self.factor}"
        self.modules: Sequence[nn.Module] = [getattr(pipe, part) for part in WEIGHTS]
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype, variant: str | None = None) -> StableDiffusionUpscaler:
        """From a folder in diffusers' layout, checked first. Raises WeightsError."""
        check_upscaler(folder, variant)
        with no_torchvision_advice():
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale import (
                StableDiffusionUpscalePipeline,
            )
        from diffusers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

        shown = is_progress_bar_enabled()
        disable_progress_bar()
        try:
            with no_progress_bars(), warnings.catch_warnings():
                # diffusers before it had `dtype` knows this name alone.
                warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
                pipe = StableDiffusionUpscalePipeline.from_pretrained(
                    folder,
                    torch_dtype=dtype,
                    variant=own_variant(folder, variant),
                    local_files_only=True,
                    # What a pipeline gives out is checked and marked by the pipeline, once.
                    safety_checker=None,
                    feature_extractor=None,
                    watermarker=None,
                )
        finally:
            if shown:
                enable_progress_bar()
        return cls(pipe)

    def check(self, size: Size, settings: Upscaling) -> None:
        for name, side in zip(("height", "width"), size, strict=True):
            if side % self.factor:
                raise ValueError(f"{self.name} enlarges sides divisible by {self.factor}; {name} {side} is not")
        table = self.pipe.scheduler.config.num_train_timesteps
        if not 1 <= settings.steps <= table:
            raise ValueError(f"{self.name} draws in 1 to {table} steps, got num_inference_steps {settings.steps}")
        most = self.pipe.config.max_noise_level
        if self._noise_level(settings) > most:
            raise ValueError(
                f"{self.name} was trained with aug_level up to {most / self._levels}, got {settings.aug_level}"
            )

    @property
    def _levels(self) -> int:
        return self.pipe.low_res_scheduler.config.num_train_timesteps

    def _noise_level(self, settings: Upscaling) -> int:
        return min(round(settings.aug_level * self._levels), self._levels - 1)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | None,
        seeds: Sequence[int],
        settings: Upscaling,
        on_step: Callable[[], Any],
    ) -> Tensor:
        enlarged = [
            self.pipe(
                prompts[i],
                image.clamp(-1, 1)[None] / 2 + 0.5,  # diffusers tells [0, 1] from [-1, 1] by negative values
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                noise_level=self._noise_level(settings),
                negative_prompt=None if negative_prompts is None else negative_prompts[i],
                generator=torch.Generator().manual_seed(seeds[i]),
                output_type="pt",
                callback=lambda *_: on_step(),
            ).images.cpu()  # one by one: the device holds no more than one
            for i, image in enumerate(images)
        ]
        return torch.cat(enlarged).float() * 2 - 1

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        for module in self.modules:  # torch's `to`: the pipeline's refuses half precision on a CPU, the modules' warns
            nn.Module.to(module, device=device, dtype=dtype)

    def save_pretrained(self, folder: Path) -> None:
        with no_progress_bars():
            self.pipe.save_pretrained(folder)


def is_upscaler(folder: Path) -> bool:
    """Whether a folder says that it is a StableDiffusionUpscalePipeline."""
    index = folder / "model_index.json"
    return index.is_file() and read_json(index).get("_class_name") == KIND


def own_variant(folder: Path, variant: str | None) -> str | None:
    """The variant, if all weights are there in it: an upscaler may lack the one that the stages have."""
    there = all(has_weights(folder / part, COMPONENTS[part], variant, optional=False) for part in WEIGHTS)
    return variant if there else None


def check_upscaler(folder: Path, variant: str | None = None) -> None:
    """Raise WeightsError naming what is missing or damaged, from configs and headers alone."""
    check_configs(folder)
    for part in WEIGHTS:
        StoredTensors(find_files(folder / part, COMPONENTS[part], own_variant(folder, variant))).close()


def check_configs(folder: Path) -> None:
    """The same from the configs alone."""
    index = read_json(folder / "model_index.json")
    for part, name in CONFIGS.items():
        library = (index.get(part) or [None])[0]
        if library not in ("diffusers", "transformers"):  # which would be imported
            raise WeightsError(f"{folder / 'model_index.json'} has {part} of {library!r}; it was not loaded")
        if not (folder / part / name).is_file():
            raise WeightsError(
                f"{folder / part / name} is missing; a {KIND} has {', '.join(CONFIGS)}: download it again"
            )
