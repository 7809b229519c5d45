"""A network in transformers' layout, from a local folder or the hub, loaded strictly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from conditioning.silence import no_progress_bars
from weights import WeightsError, resolve

T = TypeVar("T", bound=nn.Module)


def load_pretrained(kind: type[T], model: str | Path) -> tuple[T, Path]:
    """A network of a class of transformers, in float32 on the CPU, and the folder that its files are in.

    Safetensors only. Raises WeightsError where there is none, it is another network, or tensors are missing.
    """
    folder = resolve(model)
    cls: Any = kind
    wanted = cls.config_class.model_type
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"no config.json in {folder} that can be read ({error}); expected transformers' layout"
        ) from None
    if found != wanted:
        raise WeightsError(f"{folder} holds a network of type {found!r}; expected {wanted!r}")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"no safetensors in {folder}; copy or convert the weights of {model} to model.safetensors")
    try:
        with no_progress_bars():
            network, report = cls.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (RuntimeError, OSError) as error:
        raise WeightsError(
            f"the weights in {folder} do not fit their configuration ({str(error).splitlines()[0]})"
        ) from None
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise WeightsError(f"the weights in {folder} lack {', '.join(lacking[:5])}; copy or download them again")
    return network.eval().requires_grad_(False), folder


def digest(network: nn.Module) -> str:
    """SHA-256 over the names and values of all tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{found.hexdigest()}"
