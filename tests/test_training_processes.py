"""Several processes train as one does: the same losses, the same checkpoints, the same moments of stopping."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # beforehand, or every process would import it anew
from accelerate import PartialState
from torch import Tensor, nn
from training_tasks import BASE, DROPOUT, LOOP, SR, Dies, log, randomized, task

from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.training.checkpoint import find_checkpoint, read_weights
from cascade.training.distributed import World, is_sharded, shard_groups
from cascade.training.interruption import Interrupted
from cascade.training.loop import Loop
from cascade.training.schedule import Budget

SETTINGS = replace(LOOP, learning_rate=3e-3)
# Two levels, so that there is something of everything; odd widths do not divide evenly among processes. Norms take
# several channels: those of single ones take out the bias before them, whose gradient is then all rounding.
WIDER = replace(BASE, network=UNetConfig(32, (1, 3), (1, 1), (1,), 33, head_channels=32, text_width=8, groups=8))
EFFICIENT = replace(SR, network=EfficientUNetConfig(32, (1, 2), (1, 1), 33, heads=2, text_width=8, groups=8))


def in_processes(count: int, function: Callable[..., None], *args: Any) -> None:
    """Run ``function(world, *args)`` in processes connected by gloo; fail with the first one's traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    errors = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's about forks of threads
        processes = [
            context.Process(target=_in_one, args=(rank, count, port, errors, function, args)) for rank in range(count)
        ]
        for process in processes:
            process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode is not None, "the processes wait for each other"
    if not errors.empty():
        pytest.fail(errors.get())
    assert [process.exitcode for process in processes] == [0] * count


def _in_one(rank: int, count: int, port: int, errors: Any, function: Callable[..., None], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        PartialState._reset_state()  # another test's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            world, device = World.join("cpu" if torch.accelerator.is_available() else None)
            assert (world, device) == (World(rank, count), torch.device("cpu"))
            function(world, *args)
            world.leave()
            assert not torch.distributed.is_initialized()
    except BaseException:
        errors.put(traceback.format_exc())
        raise SystemExit(1) from None


def train(world: World, folder: Path, config: Any, settings: Any, steps: int) -> None:
    loop = Loop(randomized(task(config, batch_size=8)), settings, folder, world=world)
    loop.resume()
    loop.run(Budget(steps=steps))


def assert_alike(one: Path, two: Path, rel: float = 2e-4) -> None:
    a, b = log(one), log(two)
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "grad_norm", "lr", "error_q1", "error_q4"):
            assert x[name] == pytest.approx(y[name], rel=rel), (x["step"], name)


def assert_weights(one: Path, two: Path) -> None:
    for part in ("ema", "model"):
        a, b = (read_weights(find_checkpoint(folder), part) for folder in (one, two))
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            # Adam divides by the gradient's size: where that is all rounding, so is the step.
            assert (tensor - b[name]).norm() < 5e-3 * tensor.norm() + 5e-3, name


@pytest.mark.parametrize(
    ("config", "parallel"),
    [
        (EFFICIENT, "ddp"),
        (EFFICIENT, "fsdp"),
        pytest.param(WIDER, "ddp", marks=pytest.mark.slow),
        pytest.param(WIDER, "fsdp", marks=pytest.mark.slow),
    ],
    ids=["efficient-ddp", "efficient-fsdp", "unet-ddp", "unet-fsdp"],
)
def test_two_processes_train_as_one_does(tmp_path: Path, config: Any, parallel: Any) -> None:
    """And save, resume and export: the two stop halfway and go on."""
    train(World(), tmp_path / "one", config, SETTINGS, 6)
    spread = replace(SETTINGS, parallel=parallel)
    in_processes(2, halves, tmp_path / "two", config, spread)
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert_weights(tmp_path / "one", tmp_path / "two")
    files = sorted(path.name for path in find_checkpoint(tmp_path / "two").iterdir())
    assert len(files) == (4 if parallel == "ddp" else 7)
    # What two processes wrote, one goes on from.
    for name in ("one", "two"):
        train(World(), tmp_path / name, config, SETTINGS, 8)
    assert_alike(tmp_path / "one", tmp_path / "two")


def halves(world: World, folder: Path, config: Any, settings: Any) -> None:
    train(world, folder, config, settings, 3)
    train(world, folder, config, settings, 6)


@pytest.mark.slow
def test_one_process_hands_over_to_three_that_shard(tmp_path: Path) -> None:
    """Rows of 32, 33 and 96 among three."""
    settings = replace(SETTINGS, parallel="fsdp")
    for name in ("one", "three"):
        loop = Loop(randomized(task(WIDER, batch_size=6)), settings, tmp_path / name)
        loop.run(Budget(steps=2))
    in_processes(3, six_more, tmp_path / "three", settings)
    six_more(World(), tmp_path / "one", settings)
    assert_alike(tmp_path / "one", tmp_path / "three")
    assert_weights(tmp_path / "one", tmp_path / "three")


def six_more(world: World, folder: Path, settings: Any) -> None:
    loop = Loop(randomized(task(WIDER, batch_size=6)), settings, folder, world=world)
    assert loop.resume()
    loop.run(Budget(steps=8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"accumulation": 2},
        {"accumulation": 2, "parallel": "fsdp"},
        {"activation_checkpointing": True, "parallel": "fsdp"},
        {"optimizer": "muon", "parallel": "fsdp"},
        {"optimizer": "adafactor", "parallel": "fsdp"},
        {"optimizer": "adafactor"},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_options_do_as_in_one_process(tmp_path: Path, change: dict[str, Any]) -> None:
    settings = replace(SETTINGS, **change)
    train(World(), tmp_path / "one", WIDER, replace(settings, accumulation=1), 4)
    in_processes(2, train, tmp_path / "two", WIDER, settings, 4)
    loose = 2e-2 if settings.optimizer == "muon" else 1e-3  # Muon's iterations are in bf16
    assert_alike(tmp_path / "one", tmp_path / "two", rel=loose)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_bf16_trains_and_resumes_bit_for_bit(tmp_path: Path, parallel: Any) -> None:
    settings = replace(SETTINGS, bf16=True, parallel=parallel)
    in_processes(2, halves, tmp_path / "halves", DROPOUT, settings)
    in_processes(2, train, tmp_path / "whole", DROPOUT, settings, 6)
    a, b = (read_weights(find_checkpoint(tmp_path / name)) for name in ("halves", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)


class NotANumber(Dies):
    """A task whose loss is no number at step 1, in the process that has the last row."""

    def __init__(self) -> None:
        super().__init__(task(batch_size=8), 99, 99)

    def batch(self, step: int, rows: range) -> Any:
        return step == 1 and rows.stop == 8, self.inner.batch(step, rows)

    def loss(self, batch: Any) -> tuple[Tensor, Any]:
        loss, figures = self.inner.loss(batch[1])
        return (loss * math.nan if batch[0] else loss), figures


def skip_one(world: World, folder: Path, parallel: Any) -> None:
    loop = Loop(NotANumber(), replace(SETTINGS, parallel=parallel), folder, world=world)
    loop.run(Budget(steps=3))
    assert (loop.progress.steps, loop.progress.skipped) == (3, 1)
    assert all(p.isfinite().all() for p in loop.ema.gathered().values())


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_in_one_process_is_skipped_in_all(tmp_path: Path, parallel: Any) -> None:
    in_processes(2, skip_one, tmp_path, parallel)
    assert [line["loss"] is None for line in log(tmp_path)] == [False, True, False]


def stop_one(world: World, folder: Path) -> None:
    class Told(Dies):
        def batch(self, step: int, rows: range) -> Any:
            if step == 1 and not world.main:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.inner.batch(step, rows)

    loop = Loop(Told(task(batch_size=8), 99, 99), SETTINGS, folder, world=world)
    with pytest.raises(Interrupted) as raised:
        loop.run(Budget(minutes=1.0))
    assert raised.value.code == 143
    assert loop.progress.steps == 2


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    in_processes(2, stop_one, tmp_path)
    assert find_checkpoint(tmp_path).name == "step-00000002"


def test_blocks_are_sharded_but_for_what_runs_before_them() -> None:
    for config in (WIDER, EFFICIENT):
        network = task(config).model.network
        names = {id(module): name for name, module in network.named_modules()}
        grouped = {names[id(layer)] for group in shard_groups(network) for layer in group}
        assert not {name for name in grouped if name.endswith(("modulation", "text_norm", "text_key_value"))}
        blocks = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and n.split(".")[-1] == "conv1"}
        assert blocks <= grouped


def evaluated(world: World, folder: Path, parallel: Any, wanted: float) -> None:
    loop = Loop(randomized(task(SR, batch_size=8)), replace(SETTINGS, parallel=parallel), folder, world=world)
    assert loop.evaluate(task_on(loop.model), 2) == pytest.approx(wanted, rel=1e-5)
    other = task_on(loop.model)
    with torch.no_grad(), loop.ema.applied():  # twice: what is gathered is given back
        losses = [loop.inside(other.loss, other.batch(0, range(8)))[0].item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(is_sharded(p) == (parallel == "fsdp") for p in loop.model.parameters())
    loop.run(Budget(steps=1))


def task_on(model: nn.Module) -> Any:
    other = task(SR, batch_size=8, seed=5)
    other.model = model
    return other


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_validation_is_that_of_one_process(tmp_path: Path, parallel: Any) -> None:
    loop = Loop(randomized(task(SR, batch_size=8)), SETTINGS, tmp_path)
    in_processes(2, evaluated, tmp_path, parallel, loop.evaluate(task_on(loop.model), 2))
