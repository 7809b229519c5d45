"""The command that draws an image again, from its metadata."""

import shlex
from collections.abc import Mapping
from typing import Any

from pipelines.metadata import EMBEDDED_NAME
from pipelines.timesteps import as_word


def command(metadata: Mapping[str, Any], output: str) -> str:
    """The `cascade generate` that draws the image, or the whole grid, again."""
    stages = list(metadata["stages"].values())
    all_stages = stages + ([metadata["upscaler"]] if "upscaler" in metadata else [])
    prompts = metadata.get("prompts", [metadata["prompt"] or ""])
    words: list[Any] = ["cascade", "generate", *prompts, "-o", output, "--seed", metadata["seed"]]
    if "grid" in metadata:
        words += ["-n", metadata["images_per_prompt"], "--grid"]
    if metadata["model"] != EMBEDDED_NAME:
        words += ["--model", metadata["model"]]
    words += _loading(metadata.get("loaded_with", {}))
    if metadata["negative_prompt"]:
        words += ["--negative-prompt", metadata["negative_prompt"]]
    if metadata.get("image"):
        words += ["--image", metadata["image"], "--start-stage", metadata["start_stage"]]
    else:
        words += ["--height", metadata["height"], "--width", metadata["width"]]
    if metadata["stop_after"] < len(all_stages) - 1:
        words += ["--stop-after", metadata["stop_after"]]
    words += ["--steps", *(stage["steps"] for stage in all_stages)]
    if any(stage.get("timesteps") for stage in stages):
        words += ["--timesteps", *(as_word(stage.get("timesteps")) for stage in stages)]
    words += ["--guidance", *(stage["guidance_scale"] for stage in all_stages)]
    words += ["--sampler", *(stage["sampler"] for stage in stages)]
    words += ["--thresholding", *(stage["thresholding"]["kind"] for stage in stages)]
    words += ["--aug-level", *(stage["aug_level"] for stage in all_stages)]
    return shlex.join(map(str, [*words, "--dtype", metadata["dtype"]]))


def _loading(options: Mapping[str, Any]) -> list[Any]:
    """The options of `Pipeline.from_pretrained`, as `cascade generate` calls them."""
    words: list[Any] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *(value if isinstance(value, list) else [value])]
    return words
