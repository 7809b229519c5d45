"""The training loop, whatever is trained, in however many processes.

A `Task` says what a batch is and what its loss; the loop does the rest: precision, accumulation, clipping, the learning
rate, EMA, checkpoints, metrics. Since batch k is a pure function of (seed, k), the whole state of a run is weights,
EMA, optimizer and how far it has come: resuming is running again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cascade.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from cascade.training.distributed import (
    Parallel,
    World,
    checkpoint_activations,
    compile_networks,
    full,
    put_back,
    spread,
    synced,
)
from cascade.training.ema import EMA
from cascade.training.interruption import SIGNALS, Interrupted, Listening
from cascade.training.loading import load
from cascade.training.metrics import Figures, Means, MetricsFile, Reporter, memory_gb, peak_flops, rounded
from cascade.training.optimizers import OPTIMIZERS, OptimizerName, make_optimizer
from cascade.training.precision import computes_bf16
from cascade.training.schedule import Budget, Progress, rate_factor


class Task(Protocol):
    """``model`` is what is trained. ``batch(step, rows)`` makes the given rows of a batch of ``batch_size`` on the CPU,
    perhaps in another process; ``loss`` is the mean over them, with figures for the metrics, always the same ones.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def batch(self) -> Callable[[int, range], Any]: ...

    def loss(self, batch: Any) -> tuple[Tensor, Figures]: ...


@dataclass(frozen=True)
class LoopConfig:
    """How to optimize: by "adamw", "adafactor" (least memory) or "muon" (fewer steps, each a fifth dearer on a CPU).

    learning_rate is reached after ``warmup_steps`` and held until the last ``decay`` share of the run's budget, over
    which it falls linearly to zero. grad_clip bounds the gradient's norm. bf16: autocast to bfloat16, where the device
    does not merely emulate it (see cascade.training.precision). accumulation: how many parts, one after the
    other, a process's share of a batch is computed in. parallel: see cascade.training.distributed. workers: processes
    that make batches. report_every: steps between two reports (sample grids, validation); keep: how many checkpoints.
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
    accumulation: int = 1
    parallel: Parallel = "ddp"
    activation_checkpointing: bool = False
    compile: bool = False
    workers: int = 0
    max_skipped: int = 20
    log_every: int = 20
    report_every: int = 1000
    checkpoint_minutes: float = 3.0
    keep: int = 1

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is a share of the budget in [0, 1], got {self.decay}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.parallel not in ("ddp", "fsdp"):
            raise ValueError(f"parallel {self.parallel!r}: expected ddp or fsdp")
        for name in ("accumulation", "max_skipped", "log_every", "report_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if self.grad_clip <= 0:
            raise ValueError(f"grad_clip must be positive, got {self.grad_clip}")
        for name in ("warmup_steps", "weight_decay", "checkpoint_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")


class Diverged(ValueError):
    """Too many steps in a row had a loss or a gradient that is no number."""


class Loop:
    """One run in one folder: metrics.jsonl and checkpoints/.

    settings: what made the run, kept in its checkpoints. flops: of one training step, for the share of the hardware's
    that is used. reporters: who else is told the metrics; only the main process tells them.
    """

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: Path,
        *,
        first_step: int = 0,
        world: World | None = None,
        settings: Mapping[str, Any] | None = None,
        flops: float | None = None,
        reporters: Sequence[Reporter] = (),
    ) -> None:
        self.task, self.config, self.folder = task, config, Path(folder)
        self.world, self.settings, self.flops = world or World(), settings, flops
        self.parts = self.world.rows(task.batch_size, config.accumulation)
        self.model = task.model
        self.device = next(self.model.parameters()).device
        if config.activation_checkpointing:
            checkpoint_activations(self.model)
        if config.compile:
            compile_networks(self.model)
        self.bf16 = config.bf16 and computes_bf16(self.device.type)
        self.wrapped = spread(self.model, self.world, config.parallel, bf16=self.bf16)
        self.optimizer = make_optimizer(
            self.model, config.optimizer, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.ema = EMA(self.model, config.ema_decay)
        self.progress = Progress(first_step)
        self.metrics = MetricsFile(self.folder)
        self.reporters: list[Reporter] = [self.metrics, *reporters] if self.world.main else []
        self._bad_in_a_row = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> bool:
        """Take up the folder's newest checkpoint, if there is one."""
        self.world.barrier()
        found = find_checkpoint(self.folder)
        if found is None:
            if self.world.main:
                self.metrics.rewind(self.progress.batch)
            return False
        self.progress = Progress(**load_checkpoint(found, self.model, self.ema, self.optimizer)["progress"])
        if self.world.main:
            self.metrics.rewind(self.progress.batch)
        return True

    def save(self) -> None:
        state = {"progress": asdict(self.progress), "config": self.settings}
        save_checkpoint(
            self.folder,
            self.progress.batch,
            self.model,
            self.ema,
            self.optimizer,
            state,
            keep=self.config.keep,
            world=self.world,
        )

    def run(self, budget: Budget, report: Callable[[Progress], Mapping[str, float]] | None = None) -> None:
        """Train until the budget is spent, counting what a resumed run spent before; save at the end.

        While losses or gradients are no numbers nothing is saved, since the step before may have ruined the weights;
        nor does a run end so. report: called in all processes every ``report_every`` steps; the figures it returns go
        to the metrics. Raises Interrupted, after the step is done and saved, on SIGTERM or SIGINT, and Diverged.
        """
        self.model.train()
        before, began = self.progress.seconds, self.progress.steps
        started = last_save = last_log = time.monotonic()
        means, window = Means(self.world), 0
        with Listening() as signals, closing(self._batches(budget)) as batches:
            for micro_batches in batches:
                spent = budget.spent(self.progress.steps, self.progress.seconds)
                means.add(self._step(micro_batches, spent))
                window += 1
                now = time.monotonic()
                # All processes go by the main one's clock, and stop if any of them is told to.
                clock = [now - started, now - last_save, *(float(signals.heard == s) for s in SIGNALS)]
                elapsed, unsaved, *heard = self._agreed(clock)
                self.progress.seconds = before + elapsed
                last = budget.spent(self.progress.steps, self.progress.seconds) >= 1
                if last or self.progress.steps % self.config.log_every == 0:
                    self._log(means.take(self.device), (now - last_log) / window, budget)
                    window, last_log = 0, now
                told = next((signum for signum, count in zip(SIGNALS, heard, strict=True) if count), None)
                if told is None and report is not None and self.progress.steps % self.config.report_every == 0:
                    self.tell(report(self.progress))
                    self.model.train()
                sound = self._bad_in_a_row == 0
                if sound and (told is not None or unsaved > 60 * self.config.checkpoint_minutes):
                    self.save()
                    last_save = time.monotonic()
                if told is not None:
                    raise Interrupted(told, self.progress.batch, saved=sound)
                last_log += time.monotonic() - now  # what is not training does not count
        if self.progress.steps > began:  # else what is there stays, with the settings that made it
            self.save()

    def inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that uses the model, wherever its weights are; all processes have to call together."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            found = self.wrapped(function, *args)
        if not torch.is_grad_enabled():
            put_back(self.wrapped)
        return found

    @torch.no_grad()
    def evaluate(self, task: Task, steps: int) -> float:
        """The mean loss of the averaged weights over some batches of another task for the same model."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.ema.applied():
            for step in range(steps):
                for rows in self.world.rows(task.batch_size, self.config.accumulation):
                    loss, _ = self.inside(task.loss, task.batch(step, rows))
                    total += loss.double() * len(rows)
        self.model.train()
        return self.world.sum(total).item() / (steps * task.batch_size)

    def _batches(self, budget: Budget) -> Generator[Iterator[Any], None, None]:
        """For every step the budget has left, the parts of its batch."""
        if budget.spent(self.progress.steps, self.progress.seconds) >= 1:
            return
        step, workers, gpu = self.progress.batch, self.config.workers, self.device.type == "cuda"
        with closing(load(self.task.batch, self.parts, step, workers, pin_memory=gpu)) as loaded:
            while budget.spent(self.progress.steps, self.progress.seconds) < 1 or self._bad_in_a_row:
                yield itertools.islice(loaded, len(self.parts))

    def _step(self, micro_batches: Iterator[Any], spent: float) -> Figures:
        config = self.config
        factor = rate_factor(self.progress.steps, spent, warmup_steps=config.warmup_steps, decay=config.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        losses, figures = [], {}
        for i, batch in enumerate(micro_batches):
            with synced(self.wrapped, last=i == len(self.parts) - 1):
                loss, told = self.inside(self.task.loss, batch)
                (loss / len(self.parts)).backward()
            losses.append(loss.detach())
            for name, value in told.items():
                figures.setdefault(name, []).append(torch.as_tensor(value).detach().flatten())
        norm = full(nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)).item()
        loss = self.world.sum(torch.stack(losses).double().mean()).item() / self.world.size
        if math.isfinite(loss) and math.isfinite(norm):  # the same everywhere: all processes learn from it, or none
            self.optimizer.step()
            self.ema.update(self.progress.steps)
            self._bad_in_a_row = 0
        else:
            self._skip(loss, norm)
        self.optimizer.zero_grad()
        self.progress.steps += 1
        means = {name: torch.cat(values) for name, values in figures.items()}
        return {"loss": loss, "grad_norm": norm, **means}

    def _skip(self, loss: float, norm: float) -> None:
        self.progress.skipped += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self.config.max_skipped:
            found = find_checkpoint(self.folder)
            before = "there is no checkpoint yet: begin anew" if found is None else f"go on from {found}, saved before,"
            raise Diverged(
                f"{self._bad_in_a_row} steps in a row, up to {self.progress.batch}, had a loss ({loss}) or a gradient "
                f"(norm {norm}) that is no number; {before} with a lower learning_rate than "
                f"{self.config.learning_rate}, or more warmup_steps"
            )

    def _agreed(self, clock: list[float]) -> list[float]:
        """Two times of the main process, and for each signal how many have heard it."""
        if self.world.size == 1:
            return clock
        own = [x if self.world.main else 0.0 for x in clock[:2]] + clock[2:]
        return self.world.sum(torch.tensor(own, dtype=torch.float64, device=self.device)).tolist()

    def _log(self, means: dict[str, float], seconds_per_step: float, budget: Budget) -> None:
        spent = budget.spent(self.progress.steps, self.progress.seconds)
        left = (1 - spent) / spent * self.progress.seconds if spent else math.nan
        line = {
            "spent": spent,
            "images_per_second": self.task.batch_size / seconds_per_step,
            "seconds_per_step": seconds_per_step,
            "seconds_left": left,
            "memory_gb": memory_gb(self.device),
            "bad_steps": self.progress.skipped,
            "lr": self.optimizer.param_groups[0]["lr"],
            **means,
        }
        peak = peak_flops(self.device) if self.bf16 else None
        if self.flops is not None and peak is not None:
            line["mfu"] = self.flops / (seconds_per_step * peak * self.world.size)
        self.tell(line)

    def tell(self, figures: Mapping[str, float]) -> None:
        """Put figures of the step that the run has come to into the metrics."""
        if figures:
            for reporter in self.reporters:
                reporter(rounded({"step": self.progress.batch, **figures}))
