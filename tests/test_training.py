"""cascade/training/: the diffusion task, and a loop that a kill at any moment does not change."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade.build import build_stage
from cascade.data.source import data_order
from cascade.denoiser import Condition, Denoiser
from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.parameterization import LossWeight
from cascade.schedules import Cosine, LinearBeta
from cascade.stage import Augmentation, Stage, StageConfig
from cascade.training import checkpoint as checkpoint_module
from cascade.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from cascade.training.diffusion import DiffusionConfig, DiffusionTask
from cascade.training.ema import EMA
from cascade.training.loop import Budget, Loop, LoopConfig, parameter_groups
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
    """Twelve pictures with a bright half and a caption that says which."""

    def __init__(self, value: float | None = None) -> None:
        self.value = value

    def __len__(self) -> int:
        return 12

    def images(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        pictures = torch.full((len(indices), 3, 8, 8), -0.8)
        for row, index in enumerate(indices):
            if index % 2:
                pictures[row, :, : 2 + index // 3] = 0.8
            else:
                pictures[row, :, :, : 2 + index // 3] = 0.8
            pictures[row, index % 3] += float(rng.uniform(-0.1, 0.1))
        return pictures if self.value is None else torch.full_like(pictures, self.value)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return [f"{rng.choice(['a', 'the'])} picture number {index}" for index in indices]


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


def task(config: StageConfig = BASE, *, source: Any = None, **settings: Any) -> DiffusionTask:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = build_stage(config)
    encoder = None if config.network.text_width is None else encode
    return DiffusionTask(stage, source or Shapes(), encoder, DiffusionConfig(**{"batch_size": 4} | settings))


def randomized(found: DiffusionTask) -> DiffusionTask:
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return found


def state(loop: Loop) -> dict[str, Tensor]:
    """Everything that a run consists of."""
    found = {f"model.{name}": p.detach().clone() for name, p in loop.model.named_parameters()}
    found |= {f"ema.{name}": p.detach().clone() for name, p in loop.ema.model.named_parameters()}
    for name, p in loop.model.named_parameters():
        found |= {f"optimizer.{name}.{key}": value.clone() for key, value in loop.optimizer.state[p].items()}
    return found | {"progress": torch.tensor([loop.progress.first_step, loop.progress.steps])}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, wanted[name])] == []


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """Stands for a SIGKILL, which no handler sees."""


class Dies:
    """A task that saves at one step and dies at a later one."""

    def __init__(self, inner: DiffusionTask, saves_at: int, dies_at: int) -> None:
        self.inner, self.model, self.loop = inner, inner.model, None
        self.saves_at, self.dies_at = saves_at, dies_at

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.saves_at:
            self.loop.save()
        if step == self.dies_at:
            raise Killed
        return self.inner.loss(step)


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


class Process:
    """Passes on what checkpoints are written with, and dies at the given operation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
        self.left = dies_at
        save_file, rmtree, rename, mkdir = checkpoint_module.save_file, shutil.rmtree, Path.rename, Path.mkdir
        write_text, fsync = Path.write_text, os.fsync

        def half_saved(tensors: dict, path: Path) -> None:
            save_file(tensors, path)
            if self.dies():
                path.write_bytes(path.read_bytes()[:50])
                raise Killed

        def half_removed(path: Path, **kwargs: Any) -> None:
            if Path(path).exists() and self.dies():
                next(Path(path).iterdir()).unlink()
                raise Killed
            rmtree(path, **kwargs)

        monkeypatch.setattr(checkpoint_module, "save_file", half_saved)
        monkeypatch.setattr(shutil, "rmtree", half_removed)
        for owner, name, original in ((Path, "rename", rename), (Path, "mkdir", mkdir), (os, "fsync", fsync)):
            monkeypatch.setattr(owner, name, self.before(original))
        monkeypatch.setattr(Path, "write_text", self.before(write_text))

    def dies(self) -> bool:
        self.left -= 1
        return self.left == -1

    def before(self, original: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if self.dies():
                raise Killed
            return original(*args, **kwargs)

        return operation


def tiny_state(value: float) -> tuple[nn.Module, EMA, torch.optim.Optimizer]:
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in (*model.parameters(), *ema.model.parameters()):
            parameter.fill_(value)
    for parameter in model.parameters():
        optimizer.state[parameter]["exp_avg"].fill_(value)
    return model, ema, optimizer


def stored_value(folder: Path) -> float | None:
    """The one value that everything in a checkpoint has."""
    if find_checkpoint(folder) is None:
        return None
    model, ema, optimizer = tiny_state(math.nan)
    value = load_checkpoint(folder, model, ema, optimizer)["value"]
    for tensor in (*model.parameters(), *ema.model.parameters()):
        assert (tensor == value).all()
    assert all((optimizer.state[p]["exp_avg"] == value).all() for p in model.parameters())
    return value


@pytest.mark.parametrize("first", [False, True])
def test_killed_at_any_moment_of_a_save_the_old_state_is_left_or_the_new(tmp_path: Path, first: bool) -> None:
    found = []
    for dies_at in range(1000):
        folder = tmp_path / str(dies_at) / "checkpoint"
        if not first:
            save_checkpoint(folder, *tiny_state(1.0), {"value": 1.0})
        with pytest.MonkeyPatch.context() as monkeypatch:
            Process(monkeypatch, dies_at)
            try:
                save_checkpoint(folder, *tiny_state(2.0), {"value": 2.0})
                break
            except Killed:
                pass
        found.append(stored_value(folder))
        save_checkpoint(folder, *tiny_state(3.0), {"value": 3.0})
        assert stored_value(folder) == 3.0
        assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    assert len(found) >= 9
    before = None if first else 1.0
    assert found == sorted(found, key=lambda value: value == 2.0)
    assert set(found) == ({before} if first else {before, 2.0})


def test_a_kill_between_the_two_renames_is_taken_up(tmp_path: Path) -> None:
    whole = Loop(task(), LOOP, tmp_path / "whole")
    whole.run(Budget(steps=6))
    dying = Dies(task(), 3, 4)
    dying.loop = loop = Loop(dying, LOOP, tmp_path / "cut")
    with pytest.raises(Killed):
        loop.run(Budget(steps=6))
    loop.checkpoint.rename(loop.checkpoint.with_name("checkpoint.old"))
    loop.checkpoint.with_name("checkpoint.new").mkdir()
    (loop.checkpoint.with_name("checkpoint.new") / "model.safetensors").write_bytes(b"half")
    again = Loop(task(), LOOP, tmp_path / "cut")
    assert again.resume()
    assert again.progress.steps == 3
    again.run(Budget(steps=6))
    assert_same(state(again), state(whole))
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["checkpoint", "train.jsonl"]


def train_in_this_process(folder: str, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    loop = Loop(task(), replace(LOOP, checkpoint_minutes=0.0), Path(folder))
    loop.resume()
    loop.run(Budget(steps=steps))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path: Path) -> None:
    steps, folder = 80, tmp_path / "killed"
    whole = Loop(task(), LOOP, tmp_path / "whole")
    whole.run(Budget(steps=steps))
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_training; "
        f"test_training.train_in_this_process({str(folder)!r}, {steps}, {torch.get_num_threads()})"
    )
    moments, killed, begun = random.Random(0), [], 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code])
        while process.poll() is None:  # until it has trained a little on from where the last one was killed
            lines = len(log_lines(folder))
            if lines > begun:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        killed.append(process.wait() == -signal.SIGKILL)
        begun = len(log_lines(folder))
    assert killed[0]  # the machine may be too fast for the others
    last = Loop(task(), LOOP, folder)
    assert last.resume()
    assert last.progress.steps > 0
    last.run(Budget(steps=steps))
    assert_same(state(last), state(whole))


def log_lines(folder: Path) -> list[str]:
    path = folder / "train.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_checkpoints_are_written_as_often_as_asked(tmp_path: Path) -> None:
    seen = []
    loop = Loop(task(), replace(LOOP, checkpoint_minutes=0.0), tmp_path)
    loop.run(Budget(steps=3), lambda progress: seen.append((progress.steps, find_checkpoint(loop.checkpoint).exists())))
    assert seen == [(1, True), (2, True), (3, True)]
    assert json.loads((loop.checkpoint / "state.json").read_text())["steps"] == 3
    assert sorted(path.suffix for path in loop.checkpoint.iterdir()) == [".json"] + [".safetensors"] * 3
    rare = Loop(task(), LOOP, tmp_path / "rare")
    rare.run(Budget(steps=2), seen.append)
    assert len(seen) == 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Loop(task(), LOOP, tmp_path).run(Budget(steps=1))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit the model: \d+ tensors in only one of them"):
        Loop(task(PLAIN), LOOP, tmp_path).resume()


def test_the_checkpoint_holds_the_average_that_is_shipped(tmp_path: Path) -> None:
    loop = Loop(task(), LOOP, tmp_path)
    loop.run(Budget(steps=4))
    stored = load_file(loop.checkpoint / "ema.safetensors")
    for name, parameter in loop.ema.model.named_parameters():
        assert torch.equal(stored[name], parameter)
    assert not torch.equal(stored["network.stem.weight"], loop.model.network.stem.weight)


def test_batches_go_on_from_the_first_step(tmp_path: Path) -> None:
    asked = []
    counted = task()
    loss = counted.loss
    counted.loss = lambda step: asked.append(step) or loss(step)  # type: ignore[method-assign]
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
    averaged = DiffusionTask(Stage(BASE, loop.ema.model), Shapes(), encode, DiffusionConfig(batch_size=8, seed=7))
    assert averaged.loss(0)[0].item() < 0.5 * losses[0]


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


class Broken:
    """A task whose batches 2 and 3 give a loss, then gradients, that are no numbers."""

    def __init__(self) -> None:
        self.inner = task()
        self.model = self.inner.model

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, figures = self.inner.loss(step)
        if step == 2:
            loss = loss * math.nan
        if step == 3:
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
    assert not any(p.requires_grad for p in ema.model.parameters())
    wanted = model.weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        ema.update(model, n)
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(ema.model.weight, wanted)


def test_the_loop_averages_with_the_number_of_its_steps(tmp_path: Path) -> None:
    loop = Loop(task(), replace(LOOP, ema_decay=0.25), tmp_path)
    wanted = loop.model.network.stem.weight.detach().clone()
    for n in range(5):
        loop.run(Budget(steps=n + 1))
        decay = min(0.25, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * loop.model.network.stem.weight.detach()
        torch.testing.assert_close(loop.ema.model.network.stem.weight, wanted)


# The task


def spied(found: DiffusionTask) -> dict[str, Any]:
    """What the denoiser is given in the latest batch."""
    seen: dict[str, Any] = {}
    prepare, output = found.model.prepare, found.model.output

    def prepare_spy(condition: Condition, **kwargs: Any) -> Any:
        seen["condition"] = condition
        return prepare(condition, **kwargs)

    def output_spy(z: Tensor, logsnr: Tensor, prepared: Any) -> Tensor:
        seen["z"], seen["logsnr"] = z, logsnr
        return output(z, logsnr, prepared)

    found.model.prepare, found.model.output = prepare_spy, output_spy  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("config", [BASE, SR, DROPOUT])
def test_batch_k_is_a_pure_function_of_seed_and_k(config: StageConfig) -> None:
    found, other = randomized(task(config)), task(config)
    other.model.load_state_dict(found.model.state_dict())
    wanted = [found.loss(k)[0].item() for k in range(4)]
    torch.randn(7), np.random.rand(3), random.random()
    assert [other.loss(k)[0].item() for k in (3, 1, 0, 2)] == [wanted[k] for k in (3, 1, 0, 2)]
    assert len(set(wanted)) == 4
    reseeded = DiffusionTask(found.stage, Shapes(), encode, replace(found.config, seed=1))
    assert reseeded.loss(0)[0].item() != wanted[0]


def test_times_are_spread_evenly_and_noised_accordingly() -> None:
    found = task(PLAIN, batch_size=8, source=Shapes(0.5))
    seen = spied(found)
    levels, offsets = [], set()
    for step in range(15):
        found.loss(step)
        t = found.model.schedule.time(seen["logsnr"].double())
        assert sorted((t * 8).long().tolist()) == list(range(8))
        offsets.add(round((t[0].item() * 8) % 1, 6))
        levels.append(seen["logsnr"])
        alpha, sigma = seen["logsnr"].sigmoid().sqrt(), (-seen["logsnr"]).sigmoid().sqrt()
        eps = (seen["z"] - 0.5 * alpha[:, None, None, None]) / sigma[:, None, None, None]
        assert abs(eps[t > 0.1].mean()) < 0.15
        assert eps[t > 0.1].std().item() == pytest.approx(1, abs=0.1)
    assert len(offsets) == 15
    assert torch.cat(levels).unique().numel() == 120


@pytest.mark.parametrize("prediction", ["eps", "x", "v"])
@pytest.mark.parametrize(
    "weight", [LossWeight("eps_mse"), LossWeight("truncated_snr"), LossWeight("sigmoid", bias=-1.0)]
)
def test_the_loss_is_the_weighted_error_of_x0(prediction: Any, weight: LossWeight) -> None:
    """A new network's output is zero; its x0 and so its loss can be told from z alone."""
    config = replace(PLAIN, prediction=prediction, schedule=Cosine(-3.0, 3.0))
    found = task(config, source=Shapes(0.5), loss=weight)
    seen = spied(found)
    loss, _ = found.loss(0)
    snr = seen["logsnr"].exp()
    x0 = found.model(seen["z"], seen["logsnr"], found.model.prepare(Condition(), batch=4)).x0
    error = (x0 - 0.5).square().mean(dim=(1, 2, 3))
    wanted = {
        "eps_mse": snr,
        "truncated_snr": snr.clamp(min=1),
        "sigmoid": math.exp(-1) / (1 + math.exp(-1) / snr),
    }[weight.name]
    assert loss.item() == pytest.approx((wanted * error).mean().item(), rel=1e-4)


def test_errors_are_told_by_quarters_of_the_noise() -> None:
    """A zero v: at the clean end the error is that of the noise, 1; at the noisy end that of the image, 0.25."""
    found = task(PLAIN, source=Shapes(0.5))
    sums = Counter()
    for step in range(20):
        loss, figures = found.loss(step)
        assert list(figures) == [f"error_q{q}" for q in (1, 2, 3, 4)]
        assert loss.item() == pytest.approx(sum(figures.values()) / 4, rel=1e-4)
        sums.update(figures)
    assert sums["error_q1"] / 20 == pytest.approx(1, abs=0.1)
    assert sums["error_q4"] / 20 == pytest.approx(0.25, abs=0.05)
    assert sums["error_q1"] > sums["error_q2"] > sums["error_q3"] > sums["error_q4"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked(share: float) -> None:
    found = task(batch_size=250, text_dropout=share)
    found.model.output = lambda z, logsnr, prepared: torch.zeros_like(z)  # type: ignore[method-assign]
    seen, dropped = spied(found), 0
    for step in range(4):
        found.loss(step)
        text = seen["condition"].text
        rows = (text.tokens == 0).all(dim=(1, 2))
        dropped += int(rows.sum())
        assert text.mask[rows].sum(dim=1).tolist() == [1] * int(rows.sum())
        assert text.mask[~rows].sum(dim=1).tolist() == [4] * int((~rows).sum())
    assert abs(dropped - 1000 * share) <= 3.5 * math.sqrt(1000 * share * (1 - share))


def test_a_dropped_caption_is_the_null_embedding_to_the_network() -> None:
    found = randomized(task(text_dropout=1.0))
    seen = spied(found)
    found.loss(0)
    network, text = found.model.network, seen["condition"].text
    null = TextEmbedding.null(4, 8)
    torch.testing.assert_close(
        network.embed_condition(4, text.tokens, text.mask, None, None),
        network.embed_condition(4, null.tokens, null.mask, None, None),
    )
    z, logsnr = torch.randn(4, 3, 8, 8), torch.zeros(4)
    with torch.no_grad():
        outputs = [Denoiser.output(found.model, z, logsnr, found.model.prepare(Condition(t))) for t in (text, null)]
    torch.testing.assert_close(*outputs)


def test_each_image_keeps_its_own_caption() -> None:
    found = task(text_dropout=0.0)
    shown, told = [], []
    images, captions = found.source.images, found.source.captions
    found.source.images = lambda indices, rng: shown.append(list(indices)) or images(indices, rng)
    found.source.captions = lambda indices, rng: told.append(captions(indices, rng)) or told[-1]
    found.loss(5)
    assert [int(caption.split()[-1]) for caption in told[0]] == shown[0] == data_order(0, 20, 4, 12).tolist()


def test_a_stage_without_text_or_augmentation_trains(tmp_path: Path) -> None:
    network = UNetConfig(32, (1,), (1,), (), 32, in_channels=6)
    plain = replace(SR, network=network, augmentation=None, schedule=LinearBeta())
    Loop(task(plain), LOOP, tmp_path).run(Budget(steps=2))
    assert all(math.isfinite(line["loss"]) for line in log(tmp_path))


# Data order


@given(st.integers(0, 5), st.integers(1, 40), st.lists(st.integers(1, 17), min_size=1, max_size=6))
def test_the_order_of_examples_does_not_depend_on_the_batches(seed: int, length: int, batches: list[int]) -> None:
    total = sum(batches)
    whole = data_order(seed, 0, total, length)
    start, parts = 0, []
    for count in batches:
        parts.append(data_order(seed, start, count, length))
        start += count
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.int64
    for epoch in range(total // length):
        assert sorted(whole[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_every_epoch_and_seed_has_its_own_order() -> None:
    epochs = {tuple(data_order(seed, 20 * epoch, 20, 20)) for seed in range(3) for epoch in range(4)}
    assert len(epochs) == 12


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
        (lambda: DiffusionConfig(text_dropout=1.1), r"text_dropout must be in \[0, 1\], got 1.1"),
        (lambda: LossWeight("mse"), "unknown loss weight 'mse'"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
