"""cascade/training/loop.py: a loop that a kill at any moment does not change."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_tasks import (
    BASE,
    DROPOUT,
    LOOP,
    PLAIN,
    SR,
    Dies,
    Killed,
    Shapes,
    assert_same,
    encode,
    log,
    state,
    task,
    whole,
)

from cascade.parameterization import LossWeight
from cascade.stage import StageConfig
from cascade.training.checkpoint import find_checkpoint, read_state
from cascade.training.diffusion import DiffusionConfig, DiffusionTask
from cascade.training.ema import EMA
from cascade.training.interruption import Interrupted
from cascade.training.loop import Diverged, Loop, LoopConfig
from cascade.training.optimizers import parameter_groups
from cascade.training.schedule import Budget

# Resuming


@pytest.mark.parametrize(("config", "bf16"), [(BASE, False), (BASE, True), (SR, False), (SR, True), (DROPOUT, False)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, config: StageConfig, bf16: bool) -> None:
    settings = replace(LOOP, bf16=bf16)
    whole = Loop(task(config), settings, tmp_path / "whole")
    whole.run(Budget(steps=6))
    for saves_at, dies_at in ((2, 3), (4, 5)):
        dying = Dies(task(config), saves_at, dies_at)
        dying.loop = loop = Loop(dying, settings, tmp_path / "cut")
        loop.resume()
        with pytest.raises(Killed):
            loop.run(Budget(steps=6))
    last = Loop(task(config), settings, tmp_path / "cut")
    assert last.resume()
    assert last.progress.steps == 4
    last.run(Budget(steps=6))
    assert_same(state(last), state(whole))
    assert not torch.equal(state(whole)["model.network.stem.weight"], task(config).model.network.stem.weight)
    assert any(key.endswith("exp_avg_sq") for key in state(last))


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    loop = Loop(task(), LOOP, tmp_path)
    assert not loop.resume()
    loop.run(Budget(steps=3))
    again = Loop(task(), LOOP, tmp_path)
    assert again.resume()
    again.run(Budget(steps=3))
    assert_same(state(again), state(loop))
    again.run(Budget(steps=5))
    assert again.progress.steps == 5


def train_alone(folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    loop = Loop(task(), replace(LOOP, checkpoint_minutes=0.0), folder)
    loop.resume()
    loop.run(Budget(steps=steps))


def started(folder: Path, steps: int) -> Any:
    """A process that trains; forked, it need not import everything anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's about forks of threads
        process = multiprocessing.get_context("fork").Process(target=train_alone, args=(folder, steps))
        process.start()
    return process


def wait_for_lines(process: Any, folder: Path, more_than: int) -> None:
    """Until a process has trained a little, or is done."""
    while process.is_alive() and len(log_lines(folder)) <= more_than:
        time.sleep(0.005)


def log_lines(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path: Path) -> None:
    """It saves after every step, so that most kills hit a save."""
    steps, cut, plain = 300, tmp_path / "cut", tmp_path / "plain"
    moments, kills = random.Random(0), 0
    while kills < 20:
        process = started(cut, steps)
        wait_for_lines(process, cut, _newest(cut))
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        process.join()
        kills += 1
        if process.exitcode == 0:
            break
    assert kills >= 10  # the machine may be too fast for the others
    for folder in (cut, plain):
        process = started(folder, steps)
        process.join()
        assert process.exitcode == 0
    a, b = find_checkpoint(cut), find_checkpoint(plain)
    assert a is not None
    assert b is not None
    for part in ("model", "ema", "optimizer"):
        assert (a / f"{part}.safetensors").read_bytes() == (b / f"{part}.safetensors").read_bytes()
    assert [line["step"] for line in log(cut)] == list(range(1, steps + 1))
    untimed = ("loss", "lr", "grad_norm", "error_q1")
    assert [[x[name] for name in untimed] for x in log(cut)] == [[x[name] for name in untimed] for x in log(plain)]
    assert [path.name for path in (cut / "checkpoints").iterdir()] == [f"step-{steps:08d}"]


def _newest(folder: Path) -> int:
    found = find_checkpoint(folder)
    return 0 if found is None else int(found.name.removeprefix("step-"))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_leaves(tmp_path: Path, signum: int, status: int) -> None:
    class Told(Dies):
        def batch(self, step: int, rows: range) -> Any:
            if step == 2:
                os.kill(os.getpid(), signum)
            return self.inner.batch(step, rows)

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    loop = Loop(Told(task(), 99, 99), LOOP, tmp_path / "cut")
    with pytest.raises(Interrupted) as raised:
        loop.run(Budget(steps=6))
    assert raised.value.code == status
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    again = Loop(task(), LOOP, tmp_path / "cut")
    assert again.resume()
    assert again.progress.steps == 3
    again.run(Budget(steps=6))
    plain = Loop(task(), LOOP, tmp_path / "whole")
    plain.run(Budget(steps=6))
    assert_same(state(again), state(plain))


@pytest.mark.slow
def test_a_process_told_to_stop_says_so_by_its_status(tmp_path: Path) -> None:
    process = started(tmp_path, 100_000)
    wait_for_lines(process, tmp_path, 0)
    process.terminate()
    process.join(timeout=60)
    assert process.exitcode == 143
    assert find_checkpoint(tmp_path) is not None


def test_checkpoints_are_written_as_often_as_asked(tmp_path: Path) -> None:
    loop = Loop(task(), replace(LOOP, checkpoint_minutes=0.0, keep=2), tmp_path, settings={"a": 1})
    loop.run(Budget(steps=3))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000003"]
    found = find_checkpoint(tmp_path)
    assert found == folder / "step-00000003"
    assert read_state(found)["progress"]["steps"] == 3
    assert read_state(found)["config"] == {"a": 1}
    assert sorted(path.suffix for path in found.iterdir()) == [".json"] + [".safetensors"] * 3
    Loop(task(), LOOP, tmp_path / "rare").run(Budget(steps=2))
    assert [path.name for path in (tmp_path / "rare" / "checkpoints").iterdir()] == ["step-00000002"]


def test_reports_come_as_often_as_asked_and_join_the_metrics(tmp_path: Path) -> None:
    loop = Loop(task(), replace(LOOP, report_every=2, log_every=10), tmp_path)
    loop.run(Budget(steps=5), lambda progress: {"validation": float(progress.steps)})
    assert log(tmp_path) == [{"step": 2, "validation": 2.0}, {"step": 4, "validation": 4.0}]


def test_after_a_resume_no_line_is_there_twice_or_torn(tmp_path: Path) -> None:
    dying = Dies(task(), saves_at=3, dies_at=5)
    dying.loop = loop = Loop(dying, LOOP, tmp_path)
    with pytest.raises(Killed):
        loop.run(Budget(steps=7))
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    again = Loop(task(), LOOP, tmp_path)
    again.resume()
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3]
    again.run(Budget(steps=7))
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_workers_make_the_same_batches(tmp_path: Path) -> None:
    losses = []
    for workers in (0, 1):
        loop = Loop(task(), replace(LOOP, workers=workers), tmp_path / str(workers))
        loop.run(Budget(steps=3))
        losses.append([line["loss"] for line in log(tmp_path / str(workers))])
    assert losses[0] == losses[1]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Loop(task(), LOOP, tmp_path).run(Budget(steps=1))
    with pytest.raises(ValueError, match=r"the model of .* does not fit: \d+ tensors are in only one of them"):
        Loop(task(PLAIN), LOOP, tmp_path).resume()


def test_batches_go_on_from_the_first_step(tmp_path: Path) -> None:
    asked = []
    counted = task()
    batch = counted.batch
    counted.batch = lambda step, rows: asked.append(step) or batch(step, rows)  # type: ignore[assignment]
    loop = Loop(counted, LOOP, tmp_path, first_step=100)
    loop.run(Budget(steps=2))
    loop.run(Budget(steps=3))
    assert asked == [100, 101, 102]
    assert [line["step"] for line in log(tmp_path)] == [101, 102, 103]
    again = Loop(counted, LOOP, tmp_path)
    again.resume()
    assert (again.progress.first_step, again.progress.batch) == (100, 103)


def test_a_budget_of_minutes_counts_earlier_runs(tmp_path: Path) -> None:
    loop = Loop(task(), LOOP, tmp_path)
    loop.run(Budget(minutes=0.5 / 60))
    assert 0.5 <= loop.progress.seconds < 5
    again = Loop(task(), LOOP, tmp_path)
    again.resume()
    steps = again.progress.steps
    again.run(Budget(minutes=0.5 / 60))
    assert again.progress.steps == steps > 0


# Optimizing


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
        for name in ("loss", "error_q2", "lr"):
            assert line[name] == pytest.approx(sum(x[name] for x in each[3 * i : 3 * i + 3]) / 3, rel=1e-4)
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
    loop = Loop(Broken(), LOOP, tmp_path)
    states = []
    for steps in range(1, 6):
        loop.run(Budget(steps=steps))
        states.append(state(loop))
    moved = [any(not torch.equal(a[name], b[name]) for name in a if name != "progress") for a, b in pairwise(states)]
    assert moved == [True, False, False, True]
    assert all(tensor.isfinite().all() for tensor in states[-1].values())
    assert loop.progress.steps == 5
    assert [line["skipped"] for line in log(tmp_path)] == [0, 0, 1, 2, 2]
    assert log(tmp_path)[2]["loss"] is None  # JSON has no NaN
    assert log(tmp_path)[3]["grad_norm"] is None


def test_too_many_broken_batches_in_a_row_end_the_run(tmp_path: Path) -> None:
    loop = Loop(Broken((1, 2, 4, 5, 6, 7)), replace(LOOP, max_skipped=3), tmp_path)
    with pytest.raises(Diverged, match=r"3 steps in a row, up to 6, had a loss .* lower learning_rate than 0.01"):
        loop.run(Budget(steps=9))


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
        (lambda: Loop(task(), replace(LOOP, accumulation=3), Path()), r"a batch of 4 does not divide into 1 process"),
        (lambda: LossWeight("mse"), "unknown loss weight 'mse'"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
