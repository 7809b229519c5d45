"""What lies in the folders of a cascade, by their configs alone: stages without memory, and where the rest is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade.build import build_stage
from cascade.config import decode
from cascade.stage import Stage, StageConfig
from pipelines.deepfloyd import TEXT, find_text_encoder, read_configs
from pipelines.extras import find_guard
from pipelines.folders import find_folders
from weights.deepfloyd import LICENCE, is_pipeline
from weights.store import CONFIG, WeightsError, read_json, read_manifest


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


def read_contents(model: str | Path | None, upscalers: Sequence[str | Path] = ()) -> Contents:
    """Of a cascade, or of DeepFloyd IF in diffusers' layout; of a hub id no weights are fetched. Raises WeightsError or
    ConfigError.
    """
    folders, upscaler = find_folders(model, upscalers)
    folder = folders[0]
    if is_pipeline(folder):
        configs, licence = read_configs(folders), LICENCE
        encoder = find_text_encoder(folders, configs[0].network.text_width)
        text = None if encoder is None else TEXT | {"model": None}
    else:
        manifest = read_manifest(folder)
        configs, licence = [_read_config(folder / name) for name in manifest["stages"]], manifest["licence"]
        text = manifest["text_encoder"]
        encoder = folder if text is not None and text.get("model") is None else None
    with torch.device("meta"):
        stages = [build_stage(config) for config in configs]
    return Contents(stages, text, encoder, upscaler, find_guard(folders, "safety_checker"), licence)


def _read_config(folder: Path) -> StageConfig:
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsError(f"{path} is missing: the copy of this cascade is incomplete; copy or download it again")
    return decode(StageConfig, read_json(path), str(path))
