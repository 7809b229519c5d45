"""The diffusion objective as a task for the loop: noise an image, ask for it back, weigh the error.

Shapes: B images, H W pixels. All that is random about sample i is a function of (seed, i), but for the time, whose
offset is one for a whole step; so neither the number of processes nor accumulation changes what a run learns.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from cascade.data.samples import Batch as SampleBatch
from cascade.data.samples import Sample, collate
from cascade.data.skipped import SkipLog
from cascade.denoiser import Condition, Denoiser
from cascade.parameterization import LossWeight, target
from cascade.schedules import alpha_sigma
from cascade.stage import Augmentation, Stage, StageConfig
from cascade.training.metrics import Figures
from conditioning.embedding_cache import EmbeddingCache
from conditioning.lowres import augment, blur, downsample
from conditioning.text import TextEmbedding

# What a stream of random numbers is for; the keys are part of every run's identity: append, never change.
OF_NOISE, OF_STEP = (11,), (12,)


class Samples(Protocol):
    """What training sees: sample number i, without end, such as a `TrainingSet`."""

    def __getitem__(self, number: int, /) -> Sample: ...


@dataclass(frozen=True)
class DiffusionConfig:
    """batch_size images a step, of all processes together; seed: of noise levels and noise."""

    batch_size: int = 32
    loss: LossWeight = field(default_factory=LossWeight)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Batch:
    """samples: images and captions. time (B,) in [0, 1); noise B 3 H W.

    level (B,) in [0, 1], blur_sigma (B,) in pixels and level_noise B 3 H W augment the low-resolution image; there is
    no level_noise where none is augmented. seed: of what takes no generator, which is dropout.
    """

    samples: SampleBatch
    time: Tensor
    noise: Tensor
    level: Tensor
    blur_sigma: Tensor
    level_noise: Tensor | None
    seed: int

    def pin_memory(self) -> "Batch":
        """In memory that a GPU reads by itself, while this process goes on; a DataLoader with pin_memory calls this."""
        return _each_tensor(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return _each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a dataclass, whose tensors are changed, and those of dataclasses in it; nothing is checked anew."""
    if isinstance(value, Tensor):
        return change(value)
    if not is_dataclass(value):
        return value
    changed = copy.copy(value)
    for part in fields(value):
        object.__setattr__(changed, part.name, _each_tensor(getattr(value, part.name), change))
    return changed


class Batches:
    """``batches(step, rows)``: the given rows of a step's batch, a pure function of (seed, step, rows).

    cache: of the captions' embeddings, if they were made beforehand.
    """

    def __init__(
        self, stage: StageConfig, samples: Samples, config: DiffusionConfig, cache: EmbeddingCache | None = None
    ) -> None:
        self.augmentation, self.samples, self.config, self.cache = stage.augmentation, samples, config, cache

    def __call__(self, step: int, rows: range) -> Batch:
        size, seed = self.config.batch_size, self.config.seed
        # Times spread evenly over [0, 1] with one random offset: far less noise in the loss (VDM, appendix I.1).
        of_step = np.random.default_rng(np.random.SeedSequence([seed, step], spawn_key=OF_STEP))
        offset, dropout = of_step.random(), int(of_step.integers(2**62))
        numbers = [step * size + row for row in rows]
        samples = collate([self.samples[number] for number in numbers], self.cache)
        shape = samples.images.shape[1:]
        noises, level_noises, uniforms = [], [], []
        for number in numbers:
            stream = np.random.default_rng(np.random.SeedSequence([seed, number], spawn_key=OF_NOISE))
            uniforms.append(stream.random(3))
            generator = torch.Generator().manual_seed(int(stream.integers(2**62)))
            noises.append(torch.randn(shape, generator=generator))
            if self.augmentation is not None:
                level_noises.append(torch.randn(shape, generator=generator))
        level, sigma, blurred = torch.from_numpy(np.stack(uniforms)).unbind(dim=1)
        augmentation = self.augmentation or Augmentation()
        low, high = augmentation.blur_sigma or (0.0, 0.0)
        return Batch(
            samples=samples,
            time=(offset + torch.tensor(rows, dtype=torch.float64) / size) % 1,
            noise=torch.stack(noises),
            level=level * augmentation.max_level,
            blur_sigma=(low + (high - low) * sigma) * (blurred < augmentation.blur_share),
            level_noise=torch.stack(level_noises) if level_noises else None,
            seed=dropout + rows.start,
        )


class DiffusionTask:
    """Train a stage's denoiser. A super-resolution stage sees the samples' images, which may be crops, reduced and
    augmented as at sampling.

    encode: of captions, or a cache of their embeddings; None for a stage without text. skips: where items that cannot
    be used are counted. null: one row that stands for no text; None for zeros with one unmasked position.
    """

    def __init__(
        self,
        stage: Stage,
        samples: Samples,
        encode: Callable[[list[str]], TextEmbedding] | EmbeddingCache | None,
        config: DiffusionConfig,
        skips: SkipLog | None = None,
        null: TextEmbedding | None = None,
    ) -> None:
        cache = encode if isinstance(encode, EmbeddingCache) else None
        self.stage, self.config, self.skips, self.null = stage, config, skips, null
        self.encode = None if cache is not None else encode
        self.model: Denoiser = stage.denoiser
        self.batch_size = config.batch_size
        self.batch = Batches(stage.config, samples, config, cache)

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """The mean weighted error, and the errors by quarters of the time."""
        if self.skips is not None:
            self.skips.record(batch.samples.skipped)
        error, weight = self.errors(batch.to(next(self.model.parameters()).device))
        return (error * weight).mean(), _by_quartile(batch.time, error.detach())

    def errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean squared error of the network's prediction for each image, and its weight: (B,) both.

        The batch is on the model's device.
        """
        torch.manual_seed(batch.seed)
        x0, noise = batch.samples.images.float() / 127.5 - 1, batch.noise
        logsnr = self.model.schedule(batch.time).float()
        alpha, sigma = (part[:, None, None, None] for part in alpha_sigma(logsnr))
        with nullcontext() if x0.is_meta else torch.autocast(x0.device.type, enabled=False):
            condition = self._condition(batch, x0)
        prepared = self.model.prepare(condition, batch=len(x0))
        output = self.model.output(alpha * x0 + sigma * noise, logsnr, prepared)
        wanted = target(self.model.prediction, x0, noise, alpha, sigma)
        error = mse_loss(output[:, : x0.shape[1]], wanted, reduction="none").mean(dim=(1, 2, 3))
        return error, self.config.loss(self.model.prediction, logsnr)

    @torch.no_grad()
    def _condition(self, batch: Batch, x0: Tensor) -> Condition:
        text = batch.samples.text
        if self.encode is not None:
            text = self.encode(batch.samples.captions)
        if text is not None:
            text = _drop(text.to(x0.device), batch.samples.dropped, self.null)
        if self.stage.config.low_resolution is None:
            return Condition(text)
        height, width = x0.shape[-2:]
        vertical, horizontal = self.stage.scale
        small = downsample(x0, (round(height / vertical), round(width / horizontal)))
        low_res = self.stage.enlarged(small, (height, width))
        augmentation = self.stage.config.augmentation
        if augmentation is None or batch.level_noise is None:
            return Condition(text, low_res)
        if augmentation.blur_sigma is not None and not x0.is_meta:
            low_res = blur(low_res, batch.blur_sigma.float())
        logsnr = augmentation.schedule(batch.level).float()
        return Condition(text, augment(low_res, logsnr, batch.level_noise), logsnr)


def _drop(text: TextEmbedding, dropped: Tensor, null: TextEmbedding | None) -> TextEmbedding:
    """The null embedding in the rows where ``dropped`` (B,) is True."""
    if null is None:
        mask = torch.zeros_like(text.mask[:1])
        mask[:, 0] = True
        null = TextEmbedding(torch.zeros_like(text.tokens[:1]), mask, text.padding)
    both = TextEmbedding.cat([text, null.to(text.tokens.device, text.tokens.dtype)])
    rows = torch.where(dropped, len(text), torch.arange(len(text), device=dropped.device))
    return TextEmbedding(both.tokens[rows], both.mask[rows], text.padding)


def _by_quartile(time: Tensor, error: Tensor) -> Figures:
    """The unweighted errors per quarter of the time axis, 1 the cleanest. The time is on the CPU, as batches are made:
    on a GPU, to ask which rows they are would wait for all that is under way.
    """
    quarter = (time * 4).long().clamp(max=3)
    return {f"error_q{q + 1}": error[quarter == q] for q in range(4)}
