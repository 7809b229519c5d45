"""From a config to a trained stage: what `cascade train` does, in every process of a run."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cascade.build import build_stage, load_stage
from cascade.config import encode
from cascade.data.samples import Sample, TrainingSet
from cascade.data.skipped import NothingUsable, SkipLog
from cascade.data.source import ImageSource, hold_out, open_source
from cascade.data.transform import Transform
from cascade.stage import Stage, StageConfig
from cascade.training.checkpoint import find_checkpoint, read_state
from cascade.training.config import TrainConfig, differences, stored_stage
from cascade.training.cost import training_cost
from cascade.training.diffusion import DiffusionTask
from cascade.training.distributed import World
from cascade.training.lock import locked
from cascade.training.loop import Loop
from cascade.training.metrics import Console, Reporter, tracker_names, trackers
from cascade.training.samples import draw, save_sheet
from cascade.training.schedule import Progress
from cascade.training.text import Text, open_text
from weights.store import atomic_write

SKIPPED = "skipped.jsonl"
SHOWN = 16  # pictures of a base's sample grid without prompts; a quarter as many of super-resolution


class Run:
    """One process's part of a run in ``folder``, ready to go. Raises ValueError or OSError for what does not fit."""

    def __init__(
        self, config: TrainConfig, folder: Path, device: str | None = None, *, accept_changes: bool = False
    ) -> None:
        self.config, self.folder = config, folder
        otherwise = ", or pass --accept-changes to go on with it so"
        check_same(encode(config), folder, otherwise, accept_changes=accept_changes)
        self.training, self.held_out = open_data(config)
        self.world, self.device = World.join(device)
        self.world.rows(config.diffusion.batch_size, config.loop.accumulation)  # raises ValueError for a remainder
        text = None if config.text is None else open_text(config.text, self.device)
        check_width(config, text)
        self.captions, self.null = (text.captions, text.null) if text is not None else (None, None)
        torch.manual_seed(config.diffusion.seed)
        self.stage = first_stage(config).to(self.device)
        folder.mkdir(parents=True, exist_ok=True)
        self.skips = SkipLog(folder / _of(self.world, SKIPPED), len(self.training.source), config.data.max_skipped)
        self.task = DiffusionTask(self.stage, self.training, self.captions, config.diffusion, self.skips, self.null)
        settings = encode(config)
        reporters: list[Reporter] = []
        if self.world.main:
            atomic_write(folder / "config.json", json.dumps(settings, indent=2) + "\n")
            reporters = [Console(), *trackers(tracker_names(config.trackers), folder, settings)]
            check_workers(config.loop.workers)
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
        with self._naming():
            self.grid = self._grid(text)

    def __call__(self) -> Progress:
        """Train to the end of the budget, taking up what is there. Raises Interrupted and Diverged (see Loop.run), and
        TooManySkipped.
        """
        with locked(self.folder) if self.world.main else nullcontext(), self._naming():
            resumed = self.loop.resume()
            progress = self.loop.progress
            self.began = progress.batch
            if self.world.main:
                Console().say(self._introduction(resumed))
            self.loop.run(self.config.budget, self.report)
            if not self._reported(progress):
                self.loop.tell(self.report(progress))
        return progress

    def _introduction(self, resumed: bool) -> str:
        """base-64: 5.2 M parameters, 409 images; goes on from step 1200"""
        parameters = sum(parameter.numel() for parameter in self.stage.parameters())
        said = f"{self.config.stage.name}: {parameters / 1e6:,.1f} M parameters, {len(self.training.source):,} images"
        said += "; compiled in the first step, which takes minutes" if self.config.loop.compile else ""
        if resumed:
            return f"{said}; goes on from step {self.began:,}"
        anew = (self.folder / "samples").is_dir()
        return f"{said}; begins anew: there is no checkpoint in {self.folder}" if anew else said

    def _reported(self, progress: Progress) -> bool:
        """Whether the last step was, by the loop just now or before this run was taken up."""
        if progress.batch > self.began:
            return progress.steps % self.config.loop.report_every == 0
        there = float(self.world.main and self._sheet(progress).is_file())
        return bool(self.world.sum(torch.tensor(there, device=self.device)))

    def _sheet(self, progress: Progress) -> Path:
        return self.folder / "samples" / f"step-{progress.batch:08d}.png"

    @torch.no_grad()
    def report(self, progress: Progress) -> Mapping[str, float]:
        """Draw the grid, and measure the loss of the held-out images; by the averaged weights, in all processes."""
        self.stage.eval()
        with self.loop.ema.applied():
            images = self.loop.inside(self.grid)
        self.stage.train()
        if self.world.main:
            columns = self.config.samples.columns
            save_sheet(images, self._sheet(progress), columns)
        if self.held_out is None:
            return {}
        config = replace(self.config.diffusion, seed=self.config.diffusion.seed + 1)
        task = DiffusionTask(self.stage, self.held_out, self.captions, config, null=self.null)
        steps = -(-self.config.data.held_out // config.batch_size)
        return {"validation_loss": self.loop.evaluate(task, steps)}

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """What a sample found unusable until it gave up is in the file, too."""
        try:
            yield
        except NothingUsable as error:
            raise self.skips.too_many(str(error), error.skipped) from None

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


def check_same(settings: Mapping[str, Any], folder: Path, otherwise: str = "", *, accept_changes: bool = False) -> None:
    """Raise ValueError, naming what differs, if the folder holds a run of other settings. otherwise: the remedy, beside
    another folder. accept_changes: raise only for another optimizer, whose state would not fit.
    """
    found = find_checkpoint(folder)
    if found is None:
        return
    before = read_state(found)["config"]
    if before is None and not accept_changes:
        raise ValueError(f"{found} does not say what made it: choose another folder{otherwise}")
    changed = differences(before or settings, settings)
    optimizer = [change for change in changed if change.startswith("loop.optimizer ")]
    if optimizer:
        raise ValueError(
            f"{folder} holds a run that cannot change its optimizer ({optimizer[0]}): choose another folder"
        )
    if changed and not accept_changes:
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


def check_workers(workers: int) -> None:
    """Warn of more workers than there are cores to run them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores:
        warnings.warn(f"loop.workers is {workers}, and there are {cores} cores: more make nothing faster", stacklevel=2)


def first_stage(config: TrainConfig) -> Stage:
    """New weights, or those of the cascade that is started from."""
    if config.start_from is None:
        return build_stage(config.stage)
    folder = check_start(config.start_from, config.stage)
    stage = load_stage(folder.parent, folder.name, torch.float32).train()
    stage.config = config.stage
    stage.denoiser = build_like(stage, config.stage)
    return stage


def check_start(cascade: str, config: StageConfig) -> Path:
    """The folder of the stage that is started from. Raises ValueError if its weights would mean something else."""
    folder, stored = stored_stage(cascade, config.name)
    for what in ("network", "prediction", "learned_variance"):
        if getattr(stored, what) != getattr(config, what):
            raise ValueError(
                f"the {what} of {cascade}'s stage {stored.name!r} is another one: leave stage.{what} out, or start_from"
            )
    return folder


def build_like(stage: Stage, config: StageConfig) -> Any:
    """The denoiser of ``config`` with the network of a stage: schedules are no weights."""
    with torch.device("meta"):
        denoiser = build_stage(config).denoiser
    denoiser.network = stage.denoiser.network
    return denoiser


def _of(world: World, name: str) -> str:
    """A file of this process's own; the main one's has the plain name."""
    stem, dot, suffix = name.rpartition(".")
    return name if world.main else f"{stem}-{world.rank}{dot}{suffix}"
