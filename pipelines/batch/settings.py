"""Everything that determines the images of a run, checked before any work starts: what run.json holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from cascade import __version__
from cascade.build import stage_files
from pipelines.settings import Settled

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline

# Of what a pipeline was loaded with, what its weights do not show and its images depend on.
_LOADING = ("safety_checker", "watermark")
# Of the text encoder, likewise; left out where there is none of it.
_READING = ("preprocessing", "null_prompt")


def run_settings(pipe: Pipeline, settled: Settled, negative_prompt: str | None) -> dict[str, Any]:
    """The model's and the sampling's part of run.json, each default spelled out. Raises TypeError."""
    if not isinstance(negative_prompt, str | None):
        raise TypeError(f"negative_prompt is {negative_prompt!r}; expected a string, which holds for all prompts")
    sampling = {stage.config.name: own for stage, own in zip(pipe.cascade.stages, settled.sampling, strict=True)}
    return {
        "version": __version__,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "weights": weights_digest(pipe),
        "height": settled.size[0],
        "width": settled.size[1],
        "stop_after": settled.last,
        "negative_prompt": negative_prompt,
        "stages": {name: asdict(own) for name, own in sampling.items()},
        **({"upscaler": asdict(settled.upscaling)} if settled.upscaling is not None else {}),
        **{name: pipe.loaded_with[name] for name in _LOADING if name in pipe.loaded_with},
        **{name: how for name in _READING if (how := getattr(pipe.text_encoder, name)) not in (None, "none")},
    }


def weights_digest(pipe: Pipeline) -> str:
    """SHA-256 over the configs and tensors of all stages, text encoder and upscaler, as they are in memory."""
    digest = hashlib.sha256()

    def add(config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    for stage in pipe.cascade.stages:
        files = stage_files(stage)
        add(files.config, files.tensors)
    if pipe.text_encoder is not None:
        encoder = pipe.text_encoder
        add({"max_length": encoder.max_length, "padding": encoder.padding}, encoder.model.state_dict())
    if pipe.upscaler is not None:
        for module in pipe.upscaler.modules:
            add({}, module.state_dict())
    return f"sha256:{digest.hexdigest()}"
