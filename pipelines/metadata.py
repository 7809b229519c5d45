"""How an image was made: kept in its PNG, and read back."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cascade import __version__
from cascade.chain import Size
from cascade.stage import Sampling
from pipelines.upscaler import Upscaling
from weights.store import atomic_write

EMBEDDED_NAME = "toybox"  # how the embedded default is called where others have a folder or a hub id
KEY = "cascade"  # our JSON
PARAMETERS = "parameters"  # the line of text that other programs look for


def describe(
    *,
    prompt: str | None,
    negative_prompt: str | None,
    seed: int,
    model: str,
    loaded_with: Mapping[str, Any],
    dtype: str,
    size: Size,
    stages: Mapping[str, Sampling],
    upscaler: Upscaling | None,
    start_stage: int,
    stop_after: int,
) -> dict[str, Any]:
    """What it takes to draw one image again; nothing in it tells the time.

    loaded_with: the options of `Pipeline.from_pretrained` beside the model. stages: the settings by stage. upscaler:
    its settings, where there is one.
    """
    return {
        "version": __version__,
        "model": model,
        **({"loaded_with": dict(loaded_with)} if loaded_with else {}),
        "dtype": dtype,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "start_stage": start_stage,
        "stop_after": stop_after,
        "stages": {name: asdict(sampling) for name, sampling in stages.items()},
        **({"upscaler": asdict(upscaler)} if upscaler else {}),
    }


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write atomically; with metadata, as a JSON text chunk, and as the line that other programs show."""
    info = PngInfo()
    if metadata is not None:
        info.add_itxt(PARAMETERS, _line(metadata))
        info.add_itxt(KEY, json.dumps(metadata, ensure_ascii=False))
    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=info)
    atomic_write(path, data.getvalue())


def read_png(path: Path) -> dict[str, Any]:
    """The metadata of a PNG that Cascade wrote. Raises ValueError if it holds none."""
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except OSError as error:
        raise ValueError(f"{path} is no readable image ({error})") from error
    if text is None:
        raise ValueError(f"{path} does not say how it was made: it was not written by cascade, or lost its metadata")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the metadata of {path} is damaged ({error})") from error


def _line(metadata: Mapping[str, Any]) -> str:
    stages = metadata["stages"].values()
    all_stages = [*stages, *([metadata["upscaler"]] if "upscaler" in metadata else [])]
    fields = {
        "Steps": " ".join(str(stage["steps"]) for stage in all_stages),
        "Sampler": " ".join(stage["sampler"] for stage in stages),
        "CFG scale": " ".join(f"{stage['guidance_scale']:g}" for stage in all_stages),
        "Seed": metadata["seed"],
        "Size": f"{metadata['width']}x{metadata['height']}",
        "Model": metadata["model"],
        "Version": f"cascade {metadata['version']}",
    }
    lines = [metadata["prompt"] or ""]
    if metadata["negative_prompt"]:
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items())])
