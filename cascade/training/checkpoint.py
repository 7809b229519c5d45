"""A run's states on disk: a folder of safetensors and JSON each, whole or not there. No pickles.

    RUN/checkpoints/step-00001200/
        state.json                                        how far the run has come, and its configuration
        model.safetensors, ema.safetensors, optimizer.safetensors

Where weights are sharded, every process writes its rows: model-00001-of-00004.safetensors, ... Rows joined in the order
of the files are the whole tensor, so that any number of processes can read what any other number wrote.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cascade.training.distributed import World, is_sharded, local
from cascade.training.ema import EMA

FORMAT = 1
STATE = "state.json"
NAME = re.compile(r"step-(\d{8,})")


def find_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    found = _all(run / "checkpoints")
    return found[-1] if found else None


def _all(folder: Path) -> list[Path]:
    """The oldest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json, checked. Raises ValueError."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        form = state["format"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, f"its {STATE} cannot be read: {error}") from None
    if form != FORMAT:
        raise ValueError(f"{checkpoint} has format {form}, and this version reads {FORMAT}")
    return state


def _damaged(checkpoint: Path, what: str) -> ValueError:
    older = [path.name for path in _all(checkpoint.parent) if path != checkpoint]
    then = f"the run then goes on from {older[-1]}" if older else "there is no other, so the run then begins anew"
    return ValueError(f"{checkpoint} is damaged ({what}); delete it: {then}")


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    keep: int = 1,
    world: World | None = None,
) -> None:
    """Write a checkpoint and delete all but the newest ``keep``; all processes together.

    It gets its name when all of it is on the disk: killed at any moment, a run has the old ones or the new one too.
    """
    world = world or World()
    folder = run / "checkpoints"
    fresh = folder / f".step-{step:08d}.saving"
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".step-*"):  # of a save that was killed
            shutil.rmtree(left)
        fresh.mkdir()
    world.barrier()
    parts = {"model": dict(model.named_parameters()), "ema": ema.weights, "optimizer": _optimizer(model, optimizer)}
    for part, tensors in parts.items():
        sharded = any(map(is_sharded, tensors.values()))
        if world.main or sharded:
            name = f"{part}-{world.rank + 1:05d}-of-{world.size:05d}" if sharded else part
            own = {n: t for n, t in tensors.items() if world.main or is_sharded(t)}
            _write(fresh / f"{name}.safetensors", own)
    world.barrier()
    if world.main:
        final = folder / f"step-{step:08d}"
        (fresh / STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=2) + "\n", encoding="utf-8")
        _sync(fresh / STATE)
        _sync(fresh)
        if final.exists():  # written before, at the end of a shorter run
            _remove(final)
        fresh.rename(final)
        _sync(folder)
        for old in _all(folder)[:-keep]:
            _remove(old)
    world.barrier()


def load_checkpoint(checkpoint: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load in place, and return the state. Raises ValueError if it is damaged, or of another model or optimizer."""
    parameters = dict(model.named_parameters())
    for part, tensors in (("model", parameters), ("ema", ema.weights)):
        with StoredTensors(checkpoint, part) as stored:
            if stored.names != tensors.keys():
                odd = sorted(stored.names ^ tensors.keys())
                raise ValueError(
                    f"the {part} of {checkpoint} does not fit: {len(odd)} tensors are in only one of them, "
                    f"such as {odd[0]!r}"
                )
            for name, tensor in tensors.items():
                stored.read_into(name, tensor)
    with StoredTensors(checkpoint, "optimizer") as stored:
        for key in sorted(stored.names):
            name, _, what = key.rpartition("::")
            if name not in parameters:
                raise ValueError(f"the optimizer of {checkpoint} knows {name!r}, which the model does not have")
            parameter = parameters[name]
            alike = stored.shape(key) == parameter.shape
            value = torch.empty_like(parameter) if alike else torch.empty(stored.shape(key), device=parameter.device)
            stored.read_into(key, value)
            optimizer.state[parameter][what] = value
    return read_state(checkpoint)


def read_weights(checkpoint: Path, part: str = "ema") -> dict[str, Tensor]:
    """The "ema" or "model" of a checkpoint by parameter name, whole, on the CPU."""
    with StoredTensors(checkpoint, part) as stored:
        return {name: stored.read(name) for name in sorted(stored.names)}


class StoredTensors:
    """One part of a checkpoint, read as it is asked for. Raises ValueError if it is missing or damaged, and OSError."""

    def __init__(self, checkpoint: Path, part: str) -> None:
        self.checkpoint, self.part = checkpoint, part
        whole = checkpoint / f"{part}.safetensors"
        self._paths = [whole] if whole.exists() else sorted(checkpoint.glob(f"{part}-*-of-*.safetensors"))
        wanted = 1 if whole.exists() else int(self._paths[0].stem.rsplit("-", 1)[1]) if self._paths else 1
        if len(self._paths) != wanted:
            raise _damaged(checkpoint, f"it has {len(self._paths)} of {wanted} files of its {part}")

    def __enter__(self) -> StoredTensors:
        with ExitStack() as stack:
            try:
                self._files: list[Any] = [stack.enter_context(safe_open(path, "pt")) for path in self._paths]
            except SafetensorError as error:
                raise _damaged(self.checkpoint, f"its {self.part}: {error}") from error
            self._holders: dict[str, list[Any]] = {}
            for file in self._files:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    self._holders.setdefault(name, []).append(file)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        return set(self._holders)

    def shape(self, name: str) -> torch.Size:
        shapes = [file.get_slice(name).get_shape() for file in self._holders[name]]
        return torch.Size(shapes[0] if len(shapes) == 1 else [sum(s[0] for s in shapes), *shapes[0][1:]])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The whole tensor, or its rows start .. stop - 1."""
        holders = self._holders[name]
        if stop is None:
            return torch.cat([f.get_tensor(name) for f in holders]) if len(holders) > 1 else holders[0].get_tensor(name)
        parts, first = [], 0
        for file in holders:
            rows = file.get_slice(name)
            count = rows.get_shape()[0]
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high or not parts:
                parts.append(rows[min(low, count) : max(min(low, count), high)])
            first += count
        return torch.cat(parts)

    def read_into(self, name: str, tensor: Tensor) -> None:
        """Copy what this process holds of a tensor. Raises ValueError for another shape."""
        if self.shape(name) != tensor.shape:
            raise ValueError(
                f"{name!r} in the {self.part} of {self.checkpoint} has shape {tuple(self.shape(name))}, "
                f"expected {tuple(tensor.shape)}"
            )
        own = local(tensor.detach())
        if is_sharded(tensor):
            start = min(_first_row(tensor), len(tensor))
            own.copy_(self.read(name, start, start + len(own)))
        else:
            own.copy_(self.read(name))


def _first_row(tensor: Tensor) -> int:
    """Where this process's rows begin: FSDP deals them out as torch.chunk does."""
    mesh = tensor.device_mesh  # pyright: ignore[reportAttributeAccessIssue] (DTensor's)
    return mesh.get_local_rank() * -(-len(tensor) // mesh.size())


def _optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state by parameter name, so that no file depends on the order of parameter groups."""
    return {
        f"{name}::{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: local(tensor.detach()).contiguous() for name, tensor in tensors.items()}, path)
    _sync(path)


def _remove(folder: Path) -> None:
    """Take its name from it first: what has a name is whole."""
    going = folder.with_name(f".{folder.name}.removing")
    folder.rename(going)
    shutil.rmtree(going)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
