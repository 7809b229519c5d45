"""A run's state on disk: one folder of safetensors and JSON, replaced atomically. No pickles."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cascade.training.ema import EMA


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Optimizer state by parameter name, so that no file depends on the order of parameter groups."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}::{key}"] = value
    return tensors


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name; a tensor shared by two modules (T5's embedding) appears once."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _load_weights(model: nn.Module, path: Path) -> None:
    found, expected = load_file(path), dict(model.named_parameters())
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        raise ValueError(f"{path} does not fit the model: {len(odd)} tensors in only one of them, such as {odd[0]!r}")
    with torch.no_grad():
        for name, value in found.items():
            expected[name].copy_(value)


def save_checkpoint(folder: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Write beside ``folder`` and swap: killed at any moment, a whole state is left, the old one or the new one."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(_weights(model), fresh / "model.safetensors")
    save_file(_weights(ema.model), fresh / "ema.safetensors")
    save_file(_optimizer_tensors(model, optimizer), fresh / "optimizer.safetensors")
    (fresh / "state.json").write_text(json.dumps(state))
    for file in fresh.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """The folder, put back in place if a kill came between the two renames of a swap; None if there is none."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        old.rename(folder)
    return folder if folder.exists() else None


def load_checkpoint(folder: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> dict:
    """Load in place and return the state. A missing or unexpected tensor raises ValueError."""
    _load_weights(model, folder / "model.safetensors")
    _load_weights(ema.model, folder / "ema.safetensors")
    parameters = dict(model.named_parameters())
    for name, value in load_file(folder / "optimizer.safetensors").items():
        parameter, key = name.rsplit("::", 1)
        optimizer.state[parameters[parameter]][key] = value.to(parameters[parameter].device)
    return json.loads((folder / "state.json").read_text())
