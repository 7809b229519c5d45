"""A stage: a denoiser and everything it takes to draw with it, its own defaults included.

Shapes: B images, H W pixels of the stage's resolution.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cascade.denoiser import Condition, Denoiser
from cascade.guidance import guide
from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.parameterization import Prediction
from cascade.randomness import Draws
from cascade.samplers import SAMPLERS, AfterStep, Step, ddpm
from cascade.schedules import Cosine, DiscreteTable, Schedule, leading_steps, table_grid, uniform_grid
from cascade.thresholding import Thresholding, threshold
from conditioning.lowres import augment, upsample
from conditioning.text import TextEmbedding


@dataclass(frozen=True)
class Sampling:
    """How a stage draws unless told otherwise.

    guidance_scale: 1 is off. aug_level: in [0, 1], for super-resolution only. ddpm_variance: where the ancestral
    sampler's log variance lies: 0 the posterior's, 1 beta's (SR3); None: where the network has learned it does, or 0.2.

    spacing: "trailing" steps are even from pure noise on; "leading" ones, of a discrete table, end at its step 0 (as
    diffusers calls them). timesteps: the very steps of the table to visit instead, falling.
    """

    steps: int = 32
    sampler: str = "ddim"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    thresholding: Thresholding = field(default_factory=Thresholding)
    aug_level: float = 0.1
    ddpm_variance: float | None = None
    spacing: Literal["trailing", "leading"] = "trailing"
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.spacing not in ("trailing", "leading"):
            raise ValueError(f'spacing must be "trailing" or "leading", got {self.spacing!r}')
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}: choose one of {', '.join(SAMPLERS)}")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance scale must be a number >= 0 (1 is off), got {self.guidance_scale}")
        for name in ("aug_level", "ddpm_variance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")

    def override(self, **values: Any) -> "Sampling":
        """The same with every value that is not None replaced; of steps and timesteps, one takes the other's place."""
        values = {name: value for name, value in values.items() if value is not None}
        if "timesteps" in values:
            values["steps"] = len(values["timesteps"])
        elif "steps" in values:
            values["timesteps"] = None
        return replace(self, **values)


@dataclass(frozen=True)
class Augmentation:
    """Conditioning augmentation of the low-resolution image (CDM, section 4.2; Imagen, section 2.5).

    A level a in [0, max_level] is a time on ``schedule``; the network is told the level's logsnr. ``blur_sigma`` is the
    range of CDM's 3 x 3 blur in pixels, applied in training to the share ``blur_share`` of images, never in sampling.
    """

    schedule: Schedule = field(default_factory=Cosine)
    max_level: float = 1.0
    blur_sigma: tuple[float, float] | None = None
    blur_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.max_level <= 1:
            raise ValueError(f"max_level must be in (0, 1], got {self.max_level}")

    def logsnr(self, level: float) -> float:
        """The noise level of an augmentation level: on a discrete table, of its step nearest to level T."""
        if isinstance(self.schedule, DiscreteTable):
            level = min(round(level * self.schedule.steps), self.schedule.steps - 1) / (self.schedule.steps - 1)
        return self.schedule(level)


@dataclass(frozen=True)
class StageConfig:
    """Everything about a stage but its weights.

    resolution: (height, width) it was trained at. low_resolution: that of the image it enlarges, None for a base.
    upsampling: how it enlarges it beforehand; "bilinear" lets the corners' pixels meet (align_corners).
    """

    name: str
    resolution: tuple[int, int]
    network: UNetConfig | EfficientUNetConfig
    low_resolution: tuple[int, int] | None = None
    upsampling: Literal["bicubic", "bilinear"] = "bicubic"
    schedule: Schedule = field(default_factory=Cosine)
    prediction: Prediction = "v"
    learned_variance: bool = False
    augmentation: Augmentation | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        channels = 3 if self.low_resolution is None else 6
        if self.network.in_channels != channels:
            kind = "base" if self.low_resolution is None else "super-resolution"
            raise ValueError(
                f"a {kind} stage's network takes {channels} channels, got {self.network.in_channels}: set "
                f"network.in_channels to {channels}"
            )
        if self.network.out_channels != 3 * (1 + self.learned_variance):
            raise ValueError(
                f"a stage {'with' if self.learned_variance else 'without'} learned variance puts out "
                f"{3 * (1 + self.learned_variance)} channels, got {self.network.out_channels}"
            )
        if self.augmentation is not None and not self.network.augmented:
            raise ValueError(
                "the network is not told the level of the augmentation: set network.augmented to true, or leave "
                "augmentation out"
            )
        if self.augmentation is None and self.network.augmented:
            raise ValueError(
                "the network is told the level of an augmentation, and there is none: set augmentation, or "
                "network.augmented to false"
            )
        if self.augmentation is not None and self.low_resolution is None:
            raise ValueError("a base stage has no low-resolution image to augment")
        if self.augmentation is not None and self.sampling.aug_level > self.augmentation.max_level:
            raise ValueError(
                f"sampling.aug_level {self.sampling.aug_level} is above the trained {self.augmentation.max_level}"
            )
        for side in self.resolution:
            if side % self.network.divisor:
                raise ValueError(
                    f"resolution {self.resolution} is not divisible by the network's {self.network.divisor}"
                )
        if self.sampling.spacing == "leading" or self.sampling.timesteps is not None:
            _table_grid(self.schedule, self.sampling, 1.0)


def _table_grid(schedule: Schedule, sampling: Sampling, start: float) -> list[float]:
    if not isinstance(schedule, DiscreteTable):
        raise ValueError(f"leading steps and timesteps are of a DiscreteTable; the schedule is {schedule}")
    steps = sampling.timesteps or leading_steps(schedule, sampling.steps)
    return table_grid(schedule, steps[-max(1, round(len(steps) * start)) :])


class Stage(nn.Module):
    """One stage of a cascade: its config and its denoiser."""

    def __init__(self, config: StageConfig, denoiser: Denoiser) -> None:
        super().__init__()
        self.config, self.denoiser = config, denoiser

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) enlargement; (1, 1) for a base."""
        low = self.config.low_resolution or self.config.resolution
        return self.config.resolution[0] / low[0], self.config.resolution[1] / low[1]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming the nearest size that works, unless the network can draw this size."""
        divisor = self.config.network.divisor
        for name, side in (("height", height), ("width", width)):
            if side < divisor or side % divisor:
                near = max(divisor, round(side / divisor) * divisor)
                raise ValueError(
                    f"stage {self.config.name!r} draws sides divisible by {divisor}: {name} {side} is not; try {near}"
                )

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError if the settings ask for what the stage was not trained for."""
        augmentation = self.config.augmentation
        if augmentation is not None and sampling.aug_level > augmentation.max_level:
            raise ValueError(
                f"stage {self.config.name!r} was trained with aug_level up to {augmentation.max_level}, "
                f"got {sampling.aug_level}"
            )
        self.grid(sampling)

    def grid(self, sampling: Sampling, start: float = 1.0) -> list[float]:
        """The step grid from time ``start`` in (0, 1], of that share of sampling.steps."""
        if sampling.spacing == "leading" or sampling.timesteps is not None:
            return _table_grid(self.denoiser.schedule, sampling, start)
        return uniform_grid(self.denoiser.schedule, max(1, round(sampling.steps * start)), start)

    def enlarged(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        """The low-resolution image B 3 h w at the stage's own size, before augmentation."""
        if self.config.upsampling == "bilinear":
            return interpolate(low_res, size, mode="bilinear", align_corners=True)
        return upsample(low_res, size)

    def _no_class(self, batch: int) -> Tensor:
        classes = self.denoiser.network.classes
        assert classes is not None
        return torch.full((batch,), classes, device=self.device)

    def condition(
        self,
        text: TextEmbedding | None,
        low_res: Tensor | None,
        size: tuple[int, int],
        sampling: Sampling,
        draws: Draws,
        label: Tensor | None = None,
    ) -> Condition:
        """What the denoiser is told: text or class if it takes them; the image enlarged to ``size``, augmented once."""
        network = self.denoiser.network
        if network.text_width is None:
            text = None
        if network.classes is not None and label is None:
            label = self._no_class(len(draws))
        if self.config.low_resolution is None:
            return Condition(text=text, label=label)
        if low_res is None:
            raise ValueError(f"stage {self.config.name!r} enlarges an image: give low_res")
        enlarged = self.enlarged(low_res, size)
        if self.config.augmentation is None:
            return Condition(text=text, low_res=enlarged, label=label)
        self.check_sampling(sampling)
        level = self.config.augmentation.logsnr(sampling.aug_level)
        logsnr = torch.full((len(draws),), level, device=self.device)
        noise = draws.normal("augmentation", (3, *size)).to(self.device)
        return Condition(text, augment(enlarged, logsnr, noise), logsnr, label)

    @torch.no_grad()
    def sample(
        self,
        draws: Draws,
        size: tuple[int, int],
        *,
        text: TextEmbedding | None = None,
        null: TextEmbedding | None = None,
        label: Tensor | None = None,
        low_res: Tensor | None = None,
        sampling: Sampling | None = None,
        start: tuple[float, Tensor] | None = None,
        after_step: AfterStep | None = None,
    ) -> Iterator[Step]:
        """Draw one image per row of ``draws``; the last step's z is the result, B 3 H W in [-1, 1].

        text and null (the other half of guidance) have B rows; label, for a class-conditional stage, is (B,) long, None
        for no class; low_res is B 3 h w in [-1, 1]. ``start`` = (time, image) begins at that time from the noised image
        instead of from pure noise (image variation).
        """
        sampling = sampling or self.config.sampling
        self.check_size(*size)
        grid = self.grid(sampling, 1.0 if start is None else start[0])
        self.denoiser.lay_out()
        condition = self.condition(text, low_res, size, sampling, draws, label)
        if (condition.text is None and label is None) or sampling.guidance_scale == 1:
            scale, prepared = 1.0, self.denoiser.prepare(condition, grid, batch=len(draws))
        else:
            scale = sampling.guidance_scale
            other = replace(condition, text=null if condition.text is not None else None)
            if label is not None:
                other = replace(other, label=self._no_class(len(draws)))
            prepared = self.denoiser.pair(condition, other, grid)
        denoise = guide(self.denoiser, prepared, scale, sampling.guidance_interval)
        denoise = threshold(denoise, sampling.thresholding.function())

        shape = (3, *size)
        z = draws.normal("start", shape).to(self.device)
        if start is not None:
            logsnr = torch.full((len(draws),), grid[0], device=self.device)
            z = augment(start[1], logsnr, z)

        def noise(step: int) -> Tensor:
            drawn = draws.normal("steps", shape)
            # A copy from pinned memory does not wait until the GPU is done with the steps before.
            return (drawn.pin_memory() if self.device.type == "cuda" else drawn).to(self.device, non_blocking=True)

        sampler = SAMPLERS[sampling.sampler]
        if sampler is ddpm:
            sampler = partial(ddpm, interpolation=sampling.ddpm_variance)
        yield from sampler(denoise, z, grid, noise, after_step)
