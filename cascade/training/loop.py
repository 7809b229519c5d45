"""The training loop, whatever is trained.

A `Task` says what a step means; the loop does the rest: precision, optimizer, learning-rate schedule, clipping, EMA,
checkpoints, the loss log. Since a task's loss is a pure function of (weights, step), the whole state of a run is
weights, EMA, optimizer and how far it has come: resuming is running again.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from cascade.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from cascade.training.ema import EMA
from cascade.training.muon import Muon

OptimizerName = Literal["adamw", "muon"]
SMALLEST_MATRIX = 64  # rows and columns from which a parameter is worth an orthogonal step


class Task(Protocol):
    """``model`` is what is trained; ``loss(step)`` is the mean loss of batch ``step`` and figures for the log."""

    @property
    def model(self) -> nn.Module: ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True)
class LoopConfig:
    """How to optimize: by "adamw", or "muon" (fewer steps, each a fifth dearer on a CPU).

    learning_rate is reached after ``warmup_steps`` and held until the last ``decay`` share of the run's budget, over
    which it falls linearly to zero. grad_clip bounds the gradient's norm.
    """

    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay: float = 0.3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    bf16: bool = True
    log_every: int = 20
    checkpoint_minutes: float = 3.0

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"optimizer {self.optimizer!r}: expected one of {', '.join(get_args(OptimizerName))}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is a share of the budget in [0, 1], got {self.decay}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps (reproducible to the bit), or minutes of training on whatever machine."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give either steps or minutes, got steps={self.steps}, minutes={self.minutes}")
        if any(given is not None and given <= 0 for given in (self.steps, self.minutes)):
            raise ValueError(f"a budget must be positive, got steps={self.steps}, minutes={self.minutes}")

    def spent(self, steps: int, seconds: float) -> float:
        """The share of the budget gone, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        assert self.minutes is not None, "one of the two is given"
        return min(1.0, seconds / (60 * self.minutes))


@dataclass
class Progress:
    """How far a run has come. ``first_step`` is where its batches begin, so that a continued model sees new ones."""

    first_step: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def batch(self) -> int:
        return self.first_step + self.steps


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay matrices and kernels; leave gains, biases and embeddings of one dimension alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices and kernels of at least SMALLEST_MATRIX rows and columns."""
    if config.optimizer == "adamw":
        groups = parameter_groups(model, config.weight_decay)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices, rest = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            large = parameter.ndim > 1 and min(parameter.flatten(1).shape) >= SMALLEST_MATRIX
            (matrices if large and id(parameter) not in embeddings else rest).append(parameter)
    groups = [{"params": matrices, "matrices": True, "weight_decay": config.weight_decay}, {"params": rest}]
    return Muon([group for group in groups if group["params"]], config.learning_rate, betas=config.betas)


class Loop:
    """One run in one folder: train.jsonl (the log) and checkpoint/ (the last state, replaced atomically)."""

    def __init__(self, task: Task, config: LoopConfig, folder: Path, *, first_step: int = 0) -> None:
        self.task, self.config, self.folder = task, config, Path(folder)
        self.model = task.model
        self.device = next(self.model.parameters()).device
        self.optimizer = make_optimizer(self.model, config)
        self.ema = EMA(self.model, config.ema_decay)
        self.progress = Progress(first_step)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def resume(self) -> bool:
        """Take up the folder's checkpoint, if there is one."""
        if find_checkpoint(self.checkpoint) is None:
            return False
        state = load_checkpoint(self.checkpoint, self.model, self.ema, self.optimizer)
        self.progress = Progress(**state)
        return True

    def save(self) -> None:
        save_checkpoint(self.checkpoint, self.model, self.ema, self.optimizer, vars(self.progress))

    def run(self, budget: Budget, on_checkpoint: Callable[[Progress], None] | None = None) -> None:
        """Train until the budget is spent, counting what a resumed run spent before; save at the end."""
        self.model.train()
        started = last_save = last_log = time.monotonic()
        before = self.progress.seconds
        total, count, extra = 0.0, 0, {}
        while (spent := budget.spent(self.progress.steps, self.progress.seconds)) < 1:
            loss, figures = self._step(spent)
            self.progress.steps += 1
            total, count = total + loss, count + 1
            for name, value in figures.items():
                extra.setdefault(name, []).append(value)
            now = time.monotonic()
            self.progress.seconds = before + now - started
            if self.progress.steps % self.config.log_every == 0:
                means = {name: sum(values) / len(values) for name, values in extra.items()}
                self._log(total / count, means, (now - last_log) / count, spent)
                total, count, extra, last_log = 0.0, 0, {}, now
            if now - last_save > 60 * self.config.checkpoint_minutes:
                self.save()
                if on_checkpoint is not None:
                    on_checkpoint(self.progress)
                last_save = time.monotonic()
        self.save()

    def _step(self, spent: float) -> tuple[float, dict[str, float]]:
        config = self.config
        warm = min(1.0, (self.progress.steps + 1) / max(1, config.warmup_steps))
        rate = config.learning_rate * warm * min(1.0, (1 - spent) / config.decay if config.decay else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            loss, figures = self.task.loss(self.progress.batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        value = loss.item()
        if math.isfinite(value) and math.isfinite(norm.item()):  # a broken batch is skipped, not learned from
            self.optimizer.step()
            self.ema.update(self.model, self.progress.steps)
        self.optimizer.zero_grad()
        return value, figures | {"grad_norm": norm.item(), "lr": rate}

    def _log(self, loss: float, figures: dict[str, float], seconds_per_step: float, spent: float) -> None:
        line = {
            "step": self.progress.batch,
            "loss": loss,
            "seconds_per_step": seconds_per_step,
            "spent": spent,
            **figures,
        }
        with (self.folder / "train.jsonl").open("a") as log:
            log.write(json.dumps({name: float(f"{value:.6g}") for name, value in line.items()}) + "\n")
