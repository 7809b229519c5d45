"""cascade/training/checkpoint.py: whole or not there, at whatever moment a process is killed."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_tasks import LOOP, Killed, task

from cascade.training import checkpoint as checkpoint_module
from cascade.training.checkpoint import (
    StoredTensors,
    find_checkpoint,
    load_checkpoint,
    read_state,
    read_weights,
    save_checkpoint,
)
from cascade.training.ema import EMA
from cascade.training.loop import Loop
from cascade.training.schedule import Budget


class Process:
    """Passes on what checkpoints are written with, and dies at the given operation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
        self.left = dies_at
        save_file, rmtree = checkpoint_module.save_file, shutil.rmtree

        def half_saved(tensors: dict, path: Path) -> None:
            save_file(tensors, path)
            if self.dies():
                path.write_bytes(path.read_bytes()[:50])
                raise Killed

        def half_removed(path: Path, **kwargs: Any) -> None:
            if Path(path).exists() and self.dies():
                for file in list(Path(path).iterdir())[:1]:
                    file.unlink()
                raise Killed
            rmtree(path, **kwargs)

        monkeypatch.setattr(checkpoint_module, "save_file", half_saved)
        monkeypatch.setattr(shutil, "rmtree", half_removed)
        for owner, name in ((Path, "rename"), (Path, "mkdir"), (os, "fsync"), (Path, "write_text")):
            monkeypatch.setattr(owner, name, self.before(getattr(owner, name)))

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
        for tensor in (*model.parameters(), *ema.weights.values()):
            tensor.fill_(value)
    for parameter in model.parameters():
        optimizer.state[parameter]["exp_avg"].fill_(value)
    return model, ema, optimizer


def save(run: Path, step: int, value: float, **options: Any) -> None:
    save_checkpoint(run, step, *tiny_state(value), {"progress": {}, "value": value}, **options)


def stored_value(run: Path) -> float | None:
    """The one value that everything in the newest checkpoint has."""
    found = find_checkpoint(run)
    if found is None:
        return None
    model, ema, optimizer = tiny_state(math.nan)
    value = load_checkpoint(found, model, ema, optimizer)["value"]
    for tensor in (*model.parameters(), *ema.weights.values()):
        assert (tensor == value).all()
    assert all((optimizer.state[p]["exp_avg"] == value).all() for p in model.parameters())
    return value


@pytest.mark.parametrize("first", [False, True])
def test_killed_at_any_moment_of_a_save_the_old_state_is_left_or_the_new(tmp_path: Path, first: bool) -> None:
    found = []
    for dies_at in range(1000):
        run = tmp_path / str(dies_at)
        if not first:
            save(run, 1, 1.0)
        with pytest.MonkeyPatch.context() as monkeypatch:
            Process(monkeypatch, dies_at)
            try:
                save(run, 2, 2.0)
                break
            except Killed:
                pass
        found.append(stored_value(run))
        save(run, 3, 3.0)
        assert stored_value(run) == 3.0
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert len(found) >= 9
    before = None if first else 1.0
    assert found == sorted(found, key=lambda value: value == 2.0)
    assert set(found) == {before, 2.0}


def test_the_newest_is_found_by_number_and_as_many_are_kept_as_asked(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 7):
        save(tmp_path, step, float(step), keep=5)
    assert find_checkpoint(tmp_path).name == "step-100000000"
    (tmp_path / "checkpoints" / "step-notes").mkdir()
    save(tmp_path, 100_000_001, 1.0, keep=2)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-100000001", "step-100000000", "step-notes"}
    save(tmp_path, 100_000_001, 2.0, keep=2)
    assert stored_value(tmp_path) == 2.0


def test_the_checkpoint_holds_the_average_that_is_shipped(tmp_path: Path) -> None:
    loop = Loop(task(), LOOP, tmp_path)
    loop.run(Budget(steps=4))
    stored = read_weights(find_checkpoint(tmp_path))
    assert stored.keys() == loop.ema.weights.keys()
    assert all(torch.equal(stored[name], weight) for name, weight in loop.ema.weights.items())
    assert not torch.equal(stored["network.stem.weight"], loop.model.network.stem.weight)


def sharded(folder: Path, tensors: dict[str, torch.Tensor], world: int) -> None:
    """As ``world`` processes write: rows by torch.chunk, what has none by the first."""
    folder.mkdir(parents=True)
    for rank in range(world):
        own = {}
        for name, tensor in tensors.items():
            if tensor.ndim:
                rows = -(-len(tensor) // world)
                own[name] = tensor[rank * rows : (rank + 1) * rows].contiguous()
            elif rank == 0:
                own[name] = tensor
        save_file(own, folder / f"model-{rank + 1:05d}-of-{world:05d}.safetensors")


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_rows_are_read_from_whichever_files_have_them(tmp_path: Path, world: int) -> None:
    tensors = {"a": torch.randn(5, 3), "b": torch.randn(1), "c": torch.tensor(3.0), "d": torch.randn(16, 2, 2)}
    sharded(tmp_path / "x", tensors, world)
    with StoredTensors(tmp_path / "x", "model") as stored:
        assert stored.names == set(tensors)
        for name, tensor in tensors.items():
            assert stored.shape(name) == tensor.shape
            assert torch.equal(stored.read(name), tensor)
            for start in range(len(tensor) + 1 if tensor.ndim else 0):
                for stop in range(start, len(tensor) + 1):
                    assert torch.equal(stored.read(name, start, stop), tensor[start:stop]), (name, start, stop)


def test_what_is_incomplete_damaged_or_of_another_version_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path / "x", {"a": torch.randn(4, 3)}, 3)
    (tmp_path / "x" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is damaged \(it has 2 of 3 files of its model\); delete it"):
        read_weights(tmp_path / "x", "model")
    with pytest.raises(ValueError, match="has 0 of 1 files of its ema"):
        read_weights(tmp_path / "x")
    save(tmp_path, 1, 1.0)
    folder = find_checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"is damaged \(its model: .*\); delete it: there is no other, so"):
        load_checkpoint(folder, *tiny_state(0.0))
    for state in ("{", "[]", "{}"):
        (folder / "state.json").write_text(state)
        with pytest.raises(ValueError, match=r"step-00000001 is damaged \(its state\.json cannot be read: "):
            read_state(folder)
    save(tmp_path, 2, 1.0, keep=2)
    newest = find_checkpoint(tmp_path)
    (newest / "state.json").unlink()
    with pytest.raises(ValueError, match=r"step-00000002 is damaged .* then goes on from step-00000001$"):
        read_state(newest)
    (folder / "state.json").write_text('{"format": 9, "progress": {}}')
    with pytest.raises(ValueError, match="has format 9, and this version reads 1"):
        read_state(folder)


def test_other_shapes_and_parameters_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, 1.0)
    wide = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"'weight' in the model of .* has shape \(2, 2\), expected \(2, 3\)"):
        load_checkpoint(find_checkpoint(tmp_path), wide, EMA(wide, 0.9), torch.optim.AdamW(wide.parameters()))
