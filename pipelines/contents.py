"""What lies in the folders of a cascade, by configs and headers alone: stages without memory, and where the rest is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade.build import build_stage, load_config
from cascade.stage import Stage
from pipelines.extras import find_folders, find_guard
from weights.deepfloyd import LICENCE, is_pipeline
from weights.hub import resolve
from weights.store import read_manifest


@dataclass(frozen=True)
class Contents:
    """stages: on the meta device. text: of the text encoder, as in a manifest, None without one; encoder: the folder
    that it is in, None where it is elsewhere. upscaler, safety_checker: the folders that have them.
    """

    stages: Sequence[Stage]
    text: Mapping[str, Any] | None
    encoder: Path | None
    upscaler: Path | None
    safety_checker: Path | None
    licence: str


def read_contents(
    model: str | Path | None, upscalers: Sequence[str | Path] = (), variant: str | None = None
) -> Contents:
    """Of a cascade's folder, or of DeepFloyd IF in diffusers' layout. Raises WeightsError or ConfigError."""
    folder = resolve(model, variant=variant)
    folders, upscaler = find_folders(folder, upscalers, variant)
    guarded = find_guard(folders, "safety_checker")
    if is_pipeline(folder):
        from pipelines.deepfloyd import TEXT, find_text_encoder, open_stages

        with ExitStack() as stack:
            stages = [stage for stage, _ in open_stages(folders, variant, stack)]
        encoder = find_text_encoder(folders, variant, stages[0].denoiser.network.text_width)
        text = None if encoder is None else TEXT | {"model": None}
        return Contents(stages, text, encoder, upscaler, guarded, LICENCE)
    manifest = read_manifest(folder)
    with torch.device("meta"):
        stages = [build_stage(load_config(folder, name)) for name in manifest["stages"]]
    text = manifest["text_encoder"]
    encoder = folder if text is not None and text.get("model") is None else None
    return Contents(stages, text, encoder, upscaler, guarded, manifest["licence"])
