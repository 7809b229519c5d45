"""Tiny stages, pictures and tasks for the tests of training."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade.build import build_stage
from cascade.data.samples import Sample
from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.schedules import Cosine
from cascade.stage import Augmentation, StageConfig
from cascade.training.diffusion import DiffusionConfig, DiffusionTask
from cascade.training.loop import Loop, LoopConfig
from conditioning.text import TextEmbedding

BASE = StageConfig(
    name="base",
    resolution=(8, 8),
    network=UNetConfig(32, (1,), (1,), (0,), 32, head_channels=32, text_width=8),
    schedule=Cosine(-12.0, 12.0),
)
SR = StageConfig(
    name="sr",
    resolution=(8, 8),
    low_resolution=(4, 4),
    network=EfficientUNetConfig(32, (1,), (1,), 32, heads=2, text_width=8),
    augmentation=Augmentation(blur_sigma=(0.4, 0.6)),
)
DROPOUT = replace(BASE, network=replace(BASE.network, dropout=0.5))
PLAIN = replace(BASE, network=replace(BASE.network, text_width=None))
LOOP = LoopConfig(learning_rate=1e-2, warmup_steps=4, bf16=False, log_every=1, checkpoint_minutes=1e9, ema_decay=0.9)


class Shapes:
    """Samples of twelve pictures with a bright half and a caption that says which; or of one grey, ``value``."""

    def __init__(self, value: int | None = None, text_dropout: float = 0.1) -> None:
        self.value, self.text_dropout = value, text_dropout

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([7, number])
        index = number % 12
        picture = torch.full((3, 8, 8), 25, dtype=torch.uint8)
        if index % 2:
            picture[:, : 2 + index // 3] = 230
        else:
            picture[:, :, : 2 + index // 3] = 230
        picture[index % 3] += int(rng.integers(25))
        if self.value is not None:
            picture.fill_(self.value)
        caption = f"{rng.choice(['a', 'the'])} picture number {index}"
        return Sample(number, picture, caption, bool(rng.random() < self.text_dropout), str(index))


def encode(prompts: list[str]) -> TextEmbedding:
    """A token per word."""
    words = [prompt.split() for prompt in prompts]
    tokens = torch.zeros(len(prompts), max(map(len, words)) + 1, 8)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for row, prompt in enumerate(words):
        for column, word in enumerate(prompt):
            seed = torch.Generator().manual_seed(zlib.crc32(word.encode()))
            tokens[row, column] = torch.randn(8, generator=seed)
            mask[row, column] = True
    return TextEmbedding(tokens, mask)


def task(config: StageConfig = BASE, *, samples: Any = None, **settings: Any) -> DiffusionTask:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = build_stage(config)
    encoder = None if config.network.text_width is None else encode
    return DiffusionTask(stage, samples or Shapes(), encoder, DiffusionConfig(**{"batch_size": 4} | settings))


def randomized(found: DiffusionTask) -> DiffusionTask:
    """Every parameter random: fresh networks put out zeros, which would hide what they are told."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in found.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return found


def whole(found: DiffusionTask, step: int) -> Any:
    """The whole batch of a step."""
    return found.batch(step, range(found.batch_size))


def state(loop: Loop) -> dict[str, Tensor]:
    """Everything that a run consists of."""
    found = {f"model.{name}": p.detach().clone() for name, p in loop.model.named_parameters()}
    found |= {f"ema.{name}": weight.clone() for name, weight in loop.ema.weights.items()}
    for name, p in loop.model.named_parameters():
        found |= {f"optimizer.{name}.{key}": value.clone() for key, value in loop.optimizer.state[p].items()}
    return found | {"progress": torch.tensor([loop.progress.first_step, loop.progress.steps])}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, wanted[name])] == []


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """Stands for a SIGKILL, which no handler sees."""


class Dies:
    """A task that saves at one step and dies at a later one."""

    def __init__(self, inner: Any, saves_at: int, dies_at: int) -> None:
        self.inner, self.model, self.batch_size, self.loop = inner, inner.model, inner.batch_size, None
        self.saves_at, self.dies_at = saves_at, dies_at

    def batch(self, step: int, rows: range) -> Any:
        if step == self.saves_at:
            self.loop.save()
        if step == self.dies_at:
            raise Killed
        return self.inner.batch(step, rows)

    def loss(self, batch: Any) -> Any:
        return self.inner.loss(batch)
