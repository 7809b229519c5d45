"""The commands that draw an image or a run again, from what is kept of how it was drawn."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.metadata import EMBEDDED_NAME
from pipelines.timesteps import as_word


def command(metadata: Mapping[str, Any], output: str) -> str:
    """The `cascade generate` that draws the image, or the whole grid, again."""
    stages = list(metadata["stages"].values())
    upscaler = metadata.get("upscaler")
    prompts = metadata.get("prompts", [metadata["prompt"] or ""])
    words: list[Any] = ["cascade", "generate", *prompts, "-o", output, "--seed", metadata["seed"]]
    if "grid" in metadata:
        words += ["-n", metadata["images_per_prompt"], "--grid"]
    words += loading_words(metadata["model"], metadata.get("loaded_with", {}))
    if metadata["negative_prompt"]:
        words += ["--negative-prompt", metadata["negative_prompt"]]
    if metadata.get("image"):
        words += ["--image", metadata["image"], "--start-stage", metadata["start_stage"]]
    else:
        words += ["--height", metadata["height"], "--width", metadata["width"]]
    if metadata["stop_after"] < len(stages) - (upscaler is None):
        words += ["--stop-after", metadata["stop_after"]]
    return shlex.join(map(str, [*words, *sampling_words(stages, upscaler), "--dtype", metadata["dtype"]]))


def loading_words(model: str, options: Mapping[str, Any]) -> list[Any]:
    """The model and the options of `Pipeline.from_pretrained`, as the commands call them."""
    words: list[Any] = [] if model == EMBEDDED_NAME else ["--model", model]
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *(value if isinstance(value, list) else [value])]
    return words


def sampling_words(stages: Sequence[Mapping[str, Any]], upscaler: Mapping[str, Any] | None) -> list[Any]:
    """The settings of all stages, as the commands call them."""
    every = [*stages, *([] if upscaler is None else [upscaler])]
    words: list[Any] = ["--steps", *(stage["steps"] for stage in every)]
    if any(stage.get("timesteps") for stage in stages):
        words += ["--timesteps", *(as_word(stage.get("timesteps")) for stage in stages)]
    words += ["--guidance", *(stage["guidance_scale"] for stage in every)]
    words += ["--sampler", *(stage["sampler"] for stage in stages)]
    words += ["--thresholding", *(stage["thresholding"]["kind"] for stage in stages)]
    return [*words, "--aug-level", *(stage["aug_level"] for stage in every)]
