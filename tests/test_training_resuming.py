"""cascade/training/loop.py: a run that is killed at any moment ends as if it had not been."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tasks import (
    BASE,
    DROPOUT,
    LOOP,
    PLAIN,
    SR,
    Dies,
    Killed,
    assert_same,
    log,
    state,
    task,
)

from cascade.stage import StageConfig
from cascade.training.checkpoint import find_checkpoint, read_state
from cascade.training.interruption import Interrupted
from cascade.training.loop import Loop
from cascade.training.schedule import Budget


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
