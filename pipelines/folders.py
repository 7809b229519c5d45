"""The folders that a pipeline is made of: found and checked by their configs, and only then fetched whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pipelines.deepfloyd import read_configs
from pipelines.extras import GUARDS, UPSCALER
from pipelines.upscaler import check_configs, check_upscaler, is_upscaler, own_variant
from weights.deepfloyd import is_pipeline
from weights.hub import resolve
from weights.store import MANIFEST, WeightsError


def find_folders(
    model: str | Path | None, upscalers: Sequence[str | Path] = (), *, revision: str | None = None, **hub: Any
) -> tuple[list[Path], Path | None]:
    """The folders of the stages, the model's first, and that of the upscaler, if there is one: the last of
    ``upscalers``, or a cascade's own. Of a hub id no weights are fetched.

    Raises WeightsError or ConfigError for what does not belong together, or is not known.
    """
    if isinstance(upscalers, str | Path):
        raise TypeError(f"upscalers is {upscalers!r}; expected a list: [{str(upscalers)!r}]")
    folder = resolve(model, revision=revision, weights=False, **hub)
    if is_upscaler(folder):
        raise WeightsError(f"{folder} enlarges finished images; give it as the last of upscalers, behind a model")
    if not is_pipeline(folder) and not (folder / MANIFEST).is_file():
        raise WeightsError(
            f"no {MANIFEST} in {folder}, of a cascade, nor model_index.json, of DeepFloyd IF in diffusers' layout; "
            "check the path"
        )
    stages, upscaler = [folder], folder / UPSCALER if (folder / UPSCALER).is_dir() else None
    for each in upscalers:
        if upscaler is not None:
            raise WeightsError(f"{each} comes after {upscaler}, which enlarges finished images and must be the last")
        found = resolve(each, weights=False, **hub)
        if is_upscaler(found):
            upscaler = found
        else:
            stages.append(found)
    if is_pipeline(folder):
        read_configs(stages)
    elif len(stages) > 1:
        raise WeightsError(
            f"upscalers are for a DeepFloyd IF pipeline in diffusers' layout, which {folder} is not; only a "
            "StableDiffusionUpscalePipeline can follow any cascade"
        )
    if upscaler is not None:
        check_configs(upscaler)
    return stages, upscaler


def fetch_folders(
    model: str | Path | None,
    upscalers: Sequence[str | Path] = (),
    *,
    revision: str | None = None,
    variant: str | None = None,
    leave_out: Collection[str] = (),
    **hub: Any,
) -> tuple[list[Path], Path | None]:
    """The same with their weights, but those of the stages' components to ``leave_out``. Raises WeightsError or
    ConfigError.
    """
    stages, upscaler = find_folders(model, upscalers, revision=revision, **hub)
    resolve(model, revision=revision, variant=variant, leave_out=leave_out, **hub)
    later = len(stages) - 1
    for each in upscalers[:later]:
        resolve(each, variant=variant, leave_out=["text_encoder", *leave_out], **hub)
    for each in upscalers[later:]:  # the upscaler, which may lack the variant
        if own_variant(resolve(each, variant=variant, leave_out=GUARDS, **hub), variant) != variant:
            resolve(each, leave_out=GUARDS, **hub)
    if upscaler is not None:
        check_upscaler(upscaler, variant)
    return stages, upscaler
