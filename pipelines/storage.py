"""A `Pipeline` on disk and on the hub: a cascade's own folder, or DeepFloyd IF in diffusers' layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cascade.build import load_stage, stage_files, stage_folder
from cascade.card import model_card
from cascade.chain import Cascade
from conditioning.text import TextEncoder
from pipelines.deepfloyd import load_deepfloyd
from pipelines.extras import GUARDS, load_extras, save_extras
from pipelines.folders import fetch_folders
from weights.deepfloyd import LICENCE, is_pipeline
from weights.store import read_manifest, save_cascade

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline


def load(
    model: str | Path | None,
    upscalers: Sequence[str | Path],
    *,
    dtype: torch.dtype,
    revision: str | None,
    variant: str | None,
    clean_caption: bool,
    safety_checker: bool,
    watermark: bool,
    **hub: Any,
) -> dict[str, Any]:
    """What `Pipeline` is made of. Raises WeightsError or ConfigError before the first weight is read, where a config or
    a header shows what is wrong. Warns of DeepFloyd's licence.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype!r}; expected torch.float32, torch.bfloat16 or torch.float16")
    leave_out = [name for name, wanted in zip(GUARDS, (safety_checker, watermark), strict=True) if not wanted]
    stages, upscaler = fetch_folders(model, upscalers, revision=revision, variant=variant, leave_out=leave_out, **hub)
    extras = partial(load_extras, stages, upscaler, dtype=dtype, variant=variant, leave_out=leave_out)
    if is_pipeline(stages[0]):
        parts = load_deepfloyd(stages, extras, dtype=dtype, variant=variant, clean_caption=clean_caption)
    else:
        parts = _load_cascade(stages[0], extras, dtype, clean_caption, hub)
    if parts["licence"] == LICENCE:  # however they came here: it restricts their use
        warnings.warn(f"these weights are under the {LICENCE}", stacklevel=4)
    return parts


def _load_cascade(
    folder: Path, extras: Callable[[], dict[str, Any]], dtype: torch.dtype, clean_caption: bool, hub: dict[str, Any]
) -> dict[str, Any]:
    manifest = read_manifest(folder)
    source, encoder = manifest["text_encoder"] or {}, None
    cascade = Cascade([load_stage(folder, name, dtype) for name in manifest["stages"]])
    if source:
        encoder = TextEncoder.from_pretrained(
            source.get("model") or folder,
            dtype=dtype,
            revision=source.get("revision"),
            max_length=source["max_length"],
            padding=source["padding"],
            preprocessing="clean" if clean_caption else source.get("preprocessing", "none"),
            null_prompt=source.get("null_prompt"),
            **hub,
        )
    return extras() | {
        "cascade": cascade,
        "text_encoder": encoder,
        "vocabulary": source.get("vocabulary"),
        "licence": manifest["licence"],
        "provenance": manifest["provenance"],
        "text_source": {key: value for key, value in source.items() if key in ("model", "revision")},
    }


def save(pipe: Pipeline, folder: str | Path) -> None:
    """Write a pipeline as a cascade's folder, all or nothing. A text encoder that came from a hub id is named, not
    copied.
    """
    encoder = pipe.text_encoder
    text = None
    if encoder is not None:
        text = {
            **pipe.text_source,
            "max_length": encoder.max_length,
            "padding": encoder.padding,
            "preprocessing": encoder.preprocessing,
            "null_prompt": encoder.null_prompt,
            "vocabulary": pipe.vocabulary,
        }
    manifest = {"text_encoder": text, "licence": pipe.licence, "provenance": pipe.provenance}
    stages = {stage_folder(i, stage.config): stage_files(stage) for i, stage in enumerate(pipe.cascade.stages)}

    def extra(target: Path) -> None:
        if encoder is not None and pipe.text_source.get("model") is None:
            encoder.save_pretrained(target)
        save_extras(pipe, target)
        card = model_card(Path(folder).name, pipe.cascade.stages, manifest)
        (target / "README.md").write_text(card, encoding="utf-8")

    save_cascade(folder, manifest, stages, extra)
