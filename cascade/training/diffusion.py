"""The diffusion objective as a task for the loop: noise an image, ask for it back, weigh the error."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from cascade.data.source import Source, data_order
from cascade.denoiser import Condition, Denoiser
from cascade.parameterization import LossWeight, target
from cascade.schedules import alpha_sigma
from cascade.stage import Augmentation, Stage
from conditioning.lowres import augment, blur, downsample, upsample
from conditioning.text import TextEmbedding


@dataclass(frozen=True)
class DiffusionConfig:
    """batch_size images a step; text_dropout is the share of captions replaced by the null embedding (Imagen: 0.1)."""

    batch_size: int = 32
    text_dropout: float = 0.1
    loss: LossWeight = field(default_factory=LossWeight)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(f"text_dropout must be in [0, 1], got {self.text_dropout}")


class DiffusionTask:
    """Train a stage's denoiser on a source. Batch k is a pure function of (seed, k): which images, crops and
    paraphrases, which captions are dropped, every noise level and every noise.

    A super-resolution stage sees the source's images (or crops of them), reduced and augmented as at sampling.
    """

    def __init__(
        self, stage: Stage, source: Source, encode: Callable[[list[str]], TextEmbedding] | None, config: DiffusionConfig
    ) -> None:
        self.stage, self.source, self.encode, self.config = stage, source, encode, config
        self.model: Denoiser = stage.denoiser

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        device = next(self.model.parameters()).device
        rng = np.random.default_rng([self.config.seed, step])
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        torch.manual_seed(generator.initial_seed() + 1)  # dropout takes no generator
        batch = self.config.batch_size
        indices = data_order(self.config.seed, step * batch, batch, len(self.source))
        x0 = self.source.images(indices, rng).to(device)

        def normal() -> Tensor:
            return torch.randn(x0.shape, generator=generator, device=device)

        # Times spread evenly over [0, 1] with one random offset: far less noise in the loss (VDM, appendix I.1).
        offset = torch.rand((), generator=generator, device=device)
        t = (offset + torch.arange(batch, device=device) / batch) % 1
        logsnr = self.model.schedule(t.double()).float()
        alpha, sigma = (part[:, None, None, None] for part in alpha_sigma(logsnr))
        eps = normal()
        condition = self._condition(x0, indices, rng, generator, normal)
        prepared = self.model.prepare(condition, batch=batch)
        output = self.model.output(alpha * x0 + sigma * eps, logsnr, prepared)
        wanted = target(self.model.prediction, x0, eps, alpha, sigma)
        error = mse_loss(output[:, : x0.shape[1]], wanted, reduction="none").mean(dim=(1, 2, 3))
        weighted = error * self.config.loss(self.model.prediction, logsnr)
        return weighted.mean(), _by_quartile(t, error.detach())

    def _condition(
        self,
        x0: Tensor,
        indices: np.ndarray,
        rng: np.random.Generator,
        generator: torch.Generator,
        normal: Callable[[], Tensor],
    ) -> Condition:
        batch, device = len(x0), x0.device
        text = None
        if self.encode is not None:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                text = self.encode(self.source.captions(indices, rng)).to(device)
            text = _drop(text, torch.from_numpy(rng.random(batch) < self.config.text_dropout).to(device))
        low_res = aug_logsnr = None
        if self.stage.config.low_resolution is not None:
            low_res, aug_logsnr = self._low_res(x0, self.stage.config.augmentation, generator, normal)
        return Condition(text, low_res, aug_logsnr)

    def _low_res(
        self, x0: Tensor, augmentation: Augmentation | None, generator: torch.Generator, normal: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        batch, _, height, width = x0.shape
        vertical, horizontal = self.stage.scale
        small = downsample(x0, (round(height / vertical), round(width / horizontal)))
        low_res = upsample(small, (height, width))
        if augmentation is None:
            return low_res, None
        if augmentation.blur_sigma is not None:
            low, high = augmentation.blur_sigma
            u, chosen = torch.rand(2, batch, generator=generator, device=x0.device)
            sigma = low + (high - low) * u
            low_res = blur(low_res, sigma * (chosen < augmentation.blur_share))
        level = torch.rand(batch, generator=generator, device=x0.device) * augmentation.max_level
        logsnr = augmentation.schedule(level.double()).float()
        return augment(low_res, logsnr, normal()), logsnr


def _drop(text: TextEmbedding, dropped: Tensor) -> TextEmbedding:
    """The null embedding in the rows where ``dropped`` (B,) is True: zeros with one unmasked position."""
    first = torch.zeros_like(text.mask)
    first[:, 0] = True
    mask = torch.where(dropped[:, None], first, text.mask)
    return TextEmbedding(text.tokens.masked_fill(dropped[:, None, None], 0), mask, text.padding)


def _by_quartile(t: Tensor, error: Tensor) -> dict[str, float]:
    """Mean unweighted error per quarter of the time axis, 1 the cleanest."""
    quarter = (t * 4).long().clamp(max=3)
    return {f"error_q{q + 1}": error[quarter == q].mean().item() for q in range(4) if (quarter == q).any()}
