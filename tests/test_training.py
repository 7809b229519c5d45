"""cascade/training/loop.py: steps, what is told of them, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_tasks import (
    LOOP,
    SR,
    Dies,
    Shapes,
    assert_same,
    encode,
    log,
    state,
    task,
    whole,
)

from cascade.parameterization import LossWeight
from cascade.training.diffusion import DiffusionConfig, DiffusionTask
from cascade.training.ema import EMA
from cascade.training.loop import Diverged, Loop, LoopConfig
from cascade.training.muon import orthogonalized
from cascade.training.optimizers import parameter_groups
from cascade.training.schedule import Budget


def test_training_learns_the_tiny_problem(tmp_path: Path) -> None:
    loop = Loop(task(batch_size=8), replace(LOOP, learning_rate=1e-2), tmp_path)
    loop.run(Budget(steps=40))
    losses = [line["loss"] for line in log(tmp_path)]
    assert sum(losses[-10:]) < 0.65 * sum(losses[:10])
    lines = log(tmp_path)
    assert {"step", "loss", "seconds_per_step", "spent", "grad_norm", "lr", "error_q1", "error_q4"} <= lines[0].keys()
    other = DiffusionTask(loop.task.stage, Shapes(), encode, DiffusionConfig(batch_size=8, seed=7))
    before = state(loop)
    assert loop.evaluate(other, 3) < 0.5 * losses[0]
    assert_same(state(loop), before)
    loop.ema.copy_to_model()
    wanted = sum(other.loss(whole(other, k))[0].item() for k in range(3)) / 3
    assert loop.evaluate(other, 3) == pytest.approx(wanted, rel=1e-6)


def test_the_learning_rate_warms_up_and_decays(tmp_path: Path) -> None:
    Loop(task(), replace(LOOP, warmup_steps=3, decay=0.4, learning_rate=0.5, grad_clip=1e-9), tmp_path).run(
        Budget(steps=10)
    )
    rates = [line["lr"] for line in log(tmp_path)]
    wanted = [0.5 / 3, 1 / 3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125]
    assert rates == pytest.approx(wanted, rel=1e-4)
    Loop(task(), replace(LOOP, warmup_steps=0, decay=0.0), tmp_path / "flat").run(Budget(steps=3))
    assert [line["lr"] for line in log(tmp_path / "flat")] == [1e-2] * 3


def test_log_lines_are_means_since_the_last(tmp_path: Path) -> None:
    for every in (1, 3):
        Loop(task(), replace(LOOP, log_every=every), tmp_path / str(every)).run(Budget(steps=6))
    each, third = log(tmp_path / "1"), log(tmp_path / "3")
    assert [line["step"] for line in third] == [3, 6]
    for i, line in enumerate(third):
        for name in ("loss", "error_q2"):
            assert line[name] == pytest.approx(sum(x[name] for x in each[3 * i : 3 * i + 3]) / 3, rel=1e-4)
        assert line["lr"] == each[3 * i + 2]["lr"]
        assert line["images_per_second"] == pytest.approx(4 / line["seconds_per_step"], rel=1e-4)


class Broken(Dies):
    """A task whose batches 2 and 3 give a loss, then gradients, that are no numbers."""

    def __init__(self, steps: tuple[int, ...] = (2, 3)) -> None:
        super().__init__(task(), 99, 99)
        self.steps = steps

    def batch(self, step: int, rows: range) -> Any:
        return step, self.inner.batch(step, rows)

    def loss(self, batch: Any) -> Any:
        step, batch = batch
        loss, figures = self.inner.loss(batch)
        if step in self.steps:
            if step % 2 == 0:
                loss = loss * math.nan
            else:
                loss = loss + (self.model.network.stem.bias.sum() * 0).sqrt()  # 0, with the slope of a root at 0
        return loss, figures


def test_a_broken_batch_is_skipped(tmp_path: Path) -> None:
    loop, states = Loop(Broken(), LOOP, tmp_path), []
    step = loop._step

    def kept(*args: Any) -> Any:
        figures = step(*args)
        states.append(state(loop))
        return figures

    loop._step = kept  # type: ignore[method-assign]
    loop.run(Budget(steps=5))
    moved = [any(not torch.equal(a[name], b[name]) for name in a if name != "progress") for a, b in pairwise(states)]
    assert moved == [True, False, False, True]
    assert all(tensor.isfinite().all() for tensor in states[-1].values())
    assert loop.progress.steps == 5
    assert [line["bad_steps"] for line in log(tmp_path)] == [0, 0, 1, 2, 2]
    assert log(tmp_path)[2]["loss"] is None  # JSON has no NaN
    assert log(tmp_path)[3]["grad_norm"] is None


def test_too_many_broken_batches_in_a_row_end_the_run(tmp_path: Path) -> None:
    loop = Loop(Broken((1, 2, 4, 5, 6, 7)), replace(LOOP, max_skipped=3), tmp_path)
    with pytest.raises(Diverged, match=r"3 steps in a row, up to 6, had a loss .* no checkpoint yet: begin anew"):
        loop.run(Budget(steps=9))


def test_weights_that_may_be_ruined_are_not_saved(tmp_path: Path) -> None:
    config = replace(LOOP, max_skipped=3, checkpoint_minutes=0.0)  # after every step
    loop = Loop(Broken((2, 3, 5, 6, 7)), config, tmp_path)
    saved, save = [], loop.save
    loop.save = lambda: (saved.append(loop.progress.steps), save())  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=r"go on from .*step-00000005, saved before, with a lower learning_rate than"):
        loop.run(Budget(steps=9))
    assert saved == [1, 2, 5]


def test_a_run_does_not_end_on_a_broken_batch(tmp_path: Path) -> None:
    loop = Loop(Broken((2, 3)), LOOP, tmp_path)
    loop.run(Budget(steps=3))
    assert loop.progress.steps == 5
    assert log(tmp_path)[-1]["loss"] is not None


def test_gradients_are_clipped(tmp_path: Path) -> None:
    loop = Loop(task(), replace(LOOP, grad_clip=1e-3, weight_decay=0.0), tmp_path)
    norms, step = [], loop.optimizer.step

    def spy() -> None:
        norms.append(sum(p.grad.square().sum() for p in loop.model.parameters() if p.grad is not None).sqrt())
        step()

    loop.optimizer.step = spy  # type: ignore[method-assign]
    loop.run(Budget(steps=2))
    assert all(norm.item() == pytest.approx(1e-3, rel=1e-2) for norm in norms)
    assert all(line["grad_norm"] > 0.01 for line in log(tmp_path))  # as it was


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GroupNorm(1, 3), nn.Conv2d(1, 1, 3))
    model[2].weight.requires_grad_(False)
    decayed, rest = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(3, 2)]
    assert sorted(tuple(p.shape) for p in rest["params"]) == [(1,), (3,), (3,), (3,)]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.5)
    wanted = model.weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        ema.update(n)
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(ema.weights["weight"], wanted)
    own = model.weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(model.weight.detach(), wanted)
    assert torch.equal(model.weight, own)


@pytest.mark.parametrize("change", [{"activation_checkpointing": True}, {"accumulation": 2}, {"accumulation": 4}])
def test_saving_memory_changes_nothing_else(tmp_path: Path, change: dict[str, Any]) -> None:
    settings = replace(LOOP, learning_rate=1e-3)
    plain, thrifty = (
        Loop(task(SR), settings, tmp_path / "a"),
        Loop(task(SR), replace(settings, **change), tmp_path / "b"),
    )
    plain.run(Budget(steps=5))
    thrifty.run(Budget(steps=5))
    for a, b in zip(log(tmp_path / "a"), log(tmp_path / "b"), strict=True):
        for name in ("loss", "grad_norm", "error_q1", "error_q4"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_the_loop_averages_with_the_number_of_its_steps(tmp_path: Path) -> None:
    loop = Loop(task(), replace(LOOP, ema_decay=0.25), tmp_path)
    wanted = loop.model.network.stem.weight.detach().clone()
    for n in range(5):
        loop.run(Budget(steps=n + 1))
        decay = min(0.25, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * loop.model.network.stem.weight.detach()
        torch.testing.assert_close(loop.ema.weights["network.stem.weight"], wanted)


def test_reports_come_as_often_as_asked_and_join_the_metrics(tmp_path: Path) -> None:
    loop = Loop(task(), replace(LOOP, report_every=2, log_every=10), tmp_path)
    loop.run(Budget(steps=5), lambda progress: {"validation": float(progress.steps)})
    *reports, last = log(tmp_path)
    assert reports == [{"step": 2, "validation": 2.0}, {"step": 4, "validation": 4.0}]
    assert last["step"] == 5
    assert last["loss"] > 0


def test_the_rate_of_images_is_that_of_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def passes(seconds: float) -> float:
        nonlocal now
        now += seconds
        return now

    monkeypatch.setattr("cascade.training.loop.time.monotonic", lambda: passes(0.001))
    loop = Loop(task(), replace(LOOP, report_every=1, log_every=3), tmp_path)
    loop.run(Budget(steps=9), lambda progress: {"validation": passes(1000.0)})
    assert all(line["seconds_per_step"] < 1 for line in log(tmp_path) if "loss" in line)


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoopConfig(learning_rate=0.0), "learning_rate must be positive, got 0.0"),
        (lambda: LoopConfig(decay=1.5), r"decay is a share of the budget in \[0, 1\], got 1.5"),
        (lambda: LoopConfig(ema_decay=1.0), r"ema_decay must be in \[0, 1\), got 1.0"),
        (lambda: Budget(), "give either steps or minutes, got steps=None, minutes=None"),
        (lambda: Budget(3, 2.0), "give either steps or minutes"),
        (lambda: Budget(steps=0), "a budget must be positive"),
        (lambda: Budget(minutes=-1.0), "a budget must be positive"),
        (lambda: DiffusionConfig(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: DiffusionConfig(seed=-1), "seed must not be negative, got -1"),
        (lambda: LoopConfig(accumulation=0), "accumulation must be at least 1, got 0"),
        (lambda: LoopConfig(parallel="tp"), "parallel 'tp': expected ddp or fsdp"),  # type: ignore[arg-type]
        (lambda: LoopConfig(workers=-1), "workers must be at least 0, got -1"),
        *(
            (lambda name=name: LoopConfig(**{name: 0}), f"{name} must be at least 1, got 0")
            for name in ("max_skipped", "log_every", "report_every", "keep")
        ),
        *(
            (lambda name=name: LoopConfig(**{name: -1}), f"{name} must not be negative, got -1")
            for name in ("warmup_steps", "weight_decay", "checkpoint_minutes")
        ),
        (lambda: LoopConfig(betas=(0.9, 1.0)), r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        (lambda: LoopConfig(grad_clip=0.0), "grad_clip must be positive, got 0.0"),
        (lambda: LoopConfig("sgd"), "optimizer 'sgd': expected one of adamw, adafactor, muon"),  # type: ignore[arg-type]
        (lambda: Loop(task(), replace(LOOP, accumulation=3), Path()), r"a batch of 4 does not divide into 1 process"),
        (lambda: LossWeight("mse"), "unknown loss weight 'mse'"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("native", [False, True])
def test_bf16_is_for_devices_that_compute_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """Emulated, it is far slower than float32."""
    for module in ("loop", "muon"):
        monkeypatch.setattr(f"cascade.training.{module}.computes_bf16", lambda device_type: native)
    loop = Loop(task(), replace(LOOP, bf16=True), tmp_path)
    assert loop.inside(lambda: torch.is_autocast_enabled("cpu")) == native
    exact = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0].float()
    rounded = orthogonalized(exact).bfloat16().float()
    assert torch.equal(rounded, orthogonalized(exact)) == native
    assert not Loop(task(), replace(LOOP, bf16=False), tmp_path / "off").bf16
