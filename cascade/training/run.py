"""From a config to a trained stage: what `cascade train` does, in every process of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cascade.build import build_stage, load_stage
from cascade.config import encode
from cascade.data.samples import Sample, TrainingSet
from cascade.data.skipped import SkipLog, TooManySkipped
from cascade.data.source import ImageSource, hold_out, open_source
from cascade.data.transform import Transform
from cascade.stage import Stage, StageConfig
from cascade.training.checkpoint import find_checkpoint, read_state
from cascade.training.config import TrainConfig, differences, stored_stage
from cascade.training.cost import training_cost
from cascade.training.diffusion import DiffusionTask
from cascade.training.distributed import World
from cascade.training.loop import Loop
from cascade.training.metrics import Console, Reporter, tracker_names, trackers
from cascade.training.samples import draw, save_sheet
from cascade.training.schedule import Progress
from cascade.training.text import Text, open_text
from weights.store import atomic_write

SHOWN = 16  # pictures of a base's sample grid without prompts; a quarter as many of super-resolution


class Run:
    """One process's part of a run in ``folder``, ready to go. Raises ValueError or OSError for what does not fit."""

    def __init__(
        self, config: TrainConfig, folder: Path, device: str | None = None, *, accept_changes: bool = False
    ) -> None:
        self.config, self.folder = config, folder
        if not accept_changes:
            check_same(encode(config), folder, ", or pass --accept-changes to go on with it so")
        self.training, self.held_out = open_data(config)
        self.world, self.device = World.join(device)
        text = None if config.text is None else open_text(config.text, self.device)
        check_width(config, text)
        self.captions, self.null = (text.captions, text.null) if text is not None else (None, None)
        torch.manual_seed(config.diffusion.seed)
        self.stage = first_stage(config).to(self.device)
        folder.mkdir(parents=True, exist_ok=True)
        skips = SkipLog(folder / _of(self.world, "skipped.jsonl"), len(self.training.source), config.data.max_skipped)
        self.task = DiffusionTask(self.stage, self.training, self.captions, config.diffusion, skips, self.null)
        settings = encode(config)
        reporters: list[Reporter] = []
        if self.world.main:
            atomic_write(folder / "config.json", json.dumps(settings, indent=2) + "\n")
            reporters = [Console(), *trackers(tracker_names(config.trackers), folder, settings)]
        cost = training_cost(config.stage, self.training.transform.size)
        self.loop = Loop(
            self.task,
            config.loop,
            folder,
            world=self.world,
            settings=settings,
            flops=cost.flops * config.diffusion.batch_size,
            reporters=reporters,
        )
        self.grid = self._grid(text)

    def __call__(self) -> Progress:
        """Train to the end of the budget, taking up what is there. Raises Interrupted and Diverged (see Loop.run)."""
        self.loop.resume()
        try:
            self.loop.run(self.config.budget, self.report)
        except TooManySkipped as error:  # from a worker it comes with the worker's traceback in its message
            raise TooManySkipped(str(error).rpartition(f"{TooManySkipped.__name__}: ")[2]) from None
        if self.loop.progress.steps % self.config.loop.report_every:  # else the last step has just been reported
            self.loop.tell(self.report(self.loop.progress))
        return self.loop.progress

    @torch.no_grad()
    def report(self, progress: Progress) -> Mapping[str, float]:
        """Draw the grid, and measure the loss of the held-out images; by the averaged weights, in all processes."""
        self.stage.eval()
        with self.loop.ema.applied():
            images = self.loop.inside(self.grid)
        self.stage.train()
        if self.world.main:
            columns = self.config.samples.columns
            save_sheet(images, self.folder / "samples" / f"step-{progress.batch:08d}.png", columns)
        if self.held_out is None:
            return {}
        config = replace(self.config.diffusion, seed=self.config.diffusion.seed + 1)
        task = DiffusionTask(self.stage, self.held_out, self.captions, config, null=self.null)
        steps = -(-self.config.data.held_out // config.batch_size)
        return {"validation_loss": self.loop.evaluate(task, steps)}

    def _grid(self, text: Text | None) -> Callable[[], torch.Tensor]:
        """What draws the sample grid. Prompts are encoded now: one that cannot be is found out before training."""
        prompts, truth = list(self.config.samples.prompts), None
        enlarges = self.config.stage.low_resolution is not None
        if enlarges or not prompts:
            shown = self.held_out or self.training
            samples: list[Sample] = [shown[i] for i in range(SHOWN // 4 if enlarges else SHOWN)]
            prompts = [sample.caption for sample in samples]
            truth = torch.stack([sample.image for sample in samples]).float() / 127.5 - 1 if enlarges else None
        told = None if text is None else text.prompts(prompts)
        null, steps = self.null, self.config.samples.steps
        return lambda: draw(self.stage, prompts, told, null, truth=truth, steps=steps)


def check_same(settings: Mapping[str, Any], folder: Path, otherwise: str = "") -> None:
    """Raise ValueError, naming what differs, if the folder holds a run of other settings. otherwise: the remedy, beside
    another folder.
    """
    found = find_checkpoint(folder)
    if found is None:
        return
    before = read_state(found)["config"]
    if before is None:
        raise ValueError(f"{found} does not say what made it: choose another folder{otherwise}")
    changed = differences(before, settings)
    if changed:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(changed)}): choose another folder{otherwise}"
        )


def open_data(config: TrainConfig) -> tuple[TrainingSet, TrainingSet | None]:
    """What is trained on, and what is held out of it."""
    data, seed = config.data, config.diffusion.seed
    source: ImageSource = open_source(data.path, data.split)
    unseen: ImageSource | None = None
    if data.held_out:
        source, unseen = hold_out(source, data.held_out, seed)
    crop = None if data.crop is None else (data.crop, data.crop)
    transform = Transform(config.stage.resolution, crop, data.position, data.flip, data.small)
    divisor = config.stage.network.divisor
    if any(side % divisor for side in transform.size):
        raise ValueError(f"the network draws sides divisible by {divisor}: data.crop {data.crop} is not")
    training = TrainingSet(source, transform, seed=seed, text_dropout=data.text_dropout)
    if unseen is None:
        return training, None
    centred = replace(transform, position="center", flip=False)
    return training, TrainingSet(unseen, centred, seed=seed, text_dropout=0.0)


def check_width(config: TrainConfig, text: Text | None) -> None:
    """Raise ValueError unless the text is as wide as the network takes it."""
    wanted = config.stage.network.text_width
    if text is not None and text.width != wanted:
        raise ValueError(
            f"the text is {text.width} wide and the network of {config.stage.name!r} takes {wanted}: set "
            f"stage.network.text_width={text.width}, or take another encoder"
        )


def first_stage(config: TrainConfig) -> Stage:
    """New weights, or those of the cascade that is started from."""
    if config.start_from is None:
        return build_stage(config.stage)
    folder, stored = stored_stage(config.start_from, config.stage.name)
    for what in ("network", "prediction", "learned_variance"):
        if getattr(stored, what) != getattr(config.stage, what):
            raise ValueError(f"the {what} of {config.start_from}'s stage {stored.name!r} is another one")
    stage = load_stage(folder.parent, folder.name, torch.float32).train()
    stage.config = config.stage
    stage.denoiser = build_like(stage, config.stage)
    return stage


def build_like(stage: Stage, config: StageConfig) -> Any:
    """The denoiser of ``config`` with the network of a stage: schedules are no weights."""
    with torch.device("meta"):
        denoiser = build_stage(config).denoiser
    denoiser.network = stage.denoiser.network
    return denoiser


def _of(world: World, name: str) -> str:
    """A file of this process's own."""
    stem, dot, suffix = name.rpartition(".")
    return name if world.size == 1 else f"{stem}-{world.rank}{dot}{suffix}"
