"""What acts on a cascade's finished images: an upscaler, DeepFloyd IF's safety checker and its watermark. Finding,
loading and saving them.

A pipeline in diffusers' layout names them in its index; a cascade's folder has them as upscaler/, safety_checker/ (with
feature_extractor/) and watermarker/.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.safety import SafetyChecker, load_watermarker
from pipelines.upscaler import StableDiffusionUpscaler
from weights.deepfloyd import is_pipeline
from weights.store import WeightsError, read_json

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline

GUARDS = ("safety_checker", "watermarker")
UPSCALER = "upscaler"


def has(folder: Path, component: str) -> bool:
    """Whether a folder has a component. Raises WeightsError where its index says so, and there is none."""
    there = (folder / component).is_dir()
    if not is_pipeline(folder):
        return there
    said = any((read_json(folder / "model_index.json").get(component) or [None])[:1])
    if said and not there:
        raise WeightsError(f"{folder} lacks {component}/, which its model_index.json names; copy or download it again")
    return said


def find_guard(folders: Sequence[Path], component: str) -> Path | None:
    """The first folder that has a safety checker or a watermark."""
    return next((folder for folder in folders if has(folder, component)), None)


def load_extras(
    folders: Sequence[Path],
    upscaler: Path | None,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    leave_out: Collection[str] = (),
) -> dict[str, Any]:
    """As arguments of `Pipeline`. Raises WeightsError."""
    guarded, marked = (None if name in leave_out else find_guard(folders, name) for name in GUARDS)
    parts: dict[str, Any] = {}
    if marked is not None:
        parts["watermarker"] = load_watermarker(marked, variant)
    if guarded is not None:
        parts["safety_checker"] = SafetyChecker.from_pretrained(guarded, dtype, variant)
    if upscaler is not None:
        parts["upscaler"] = StableDiffusionUpscaler.from_pretrained(upscaler, dtype, variant)
    return parts


def save_extras(pipe: Pipeline, folder: Path) -> None:
    """Into a cascade's folder, as `load_extras` reads them."""
    if pipe.watermarker is not None:
        pipe.watermarker.save_pretrained(folder / "watermarker")
    if pipe.safety_checker is not None:
        pipe.safety_checker.save_pretrained(folder)
    if pipe.upscaler is not None:
        pipe.upscaler.save_pretrained(folder / UPSCALER)
