"""How an image was made: kept in its PNG, read back, and turned into the command that makes it again."""

import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cascade import __version__
from cascade.chain import Size
from cascade.stage import Sampling
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
    dtype: str,
    size: Size,
    stages: Mapping[str, Sampling],
    start_stage: int,
    stop_after: int,
) -> dict[str, Any]:
    """What it takes to draw one image again; stages: the settings by stage. Nothing in it tells the time."""
    return {
        "version": __version__,
        "model": model,
        "dtype": dtype,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "start_stage": start_stage,
        "stop_after": stop_after,
        "stages": {name: asdict(sampling) for name, sampling in stages.items()},
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
    fields = {
        "Steps": " ".join(str(stage["steps"]) for stage in stages),
        "Sampler": " ".join(stage["sampler"] for stage in stages),
        "CFG scale": " ".join(f"{stage['guidance_scale']:g}" for stage in stages),
        "Seed": metadata["seed"],
        "Size": f"{metadata['width']}x{metadata['height']}",
        "Model": metadata["model"],
        "Version": f"cascade {metadata['version']}",
    }
    lines = [metadata["prompt"] or ""]
    if metadata["negative_prompt"]:
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items())])


def command(metadata: Mapping[str, Any], output: str) -> str:
    """The `cascade generate` that draws the image, or the whole grid, again."""
    stages = list(metadata["stages"].values())
    prompts = metadata.get("prompts", [metadata["prompt"] or ""])
    words: list[Any] = ["cascade", "generate", *prompts, "-o", output, "--seed", metadata["seed"]]
    if "grid" in metadata:
        words += ["-n", metadata["images_per_prompt"], "--grid"]
    if metadata["model"] != EMBEDDED_NAME:
        words += ["--model", metadata["model"]]
    if metadata["negative_prompt"]:
        words += ["--negative-prompt", metadata["negative_prompt"]]
    if metadata.get("image"):
        words += ["--image", metadata["image"], "--start-stage", metadata["start_stage"]]
    else:
        words += ["--height", metadata["height"], "--width", metadata["width"]]
    if metadata["stop_after"] < len(stages) - 1:
        words += ["--stop-after", metadata["stop_after"]]
    words += ["--steps", *(stage["steps"] for stage in stages)]
    words += ["--guidance", *(stage["guidance_scale"] for stage in stages)]
    words += ["--sampler", *(stage["sampler"] for stage in stages)]
    words += ["--thresholding", *(stage["thresholding"]["kind"] for stage in stages)]
    words += ["--aug-level", *(stage["aug_level"] for stage in stages)]
    return shlex.join(map(str, [*words, "--dtype", metadata["dtype"]]))
