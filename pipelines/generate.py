"""`cascade generate`: prompts to PNG files that say how they were made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


def generate(
    prompts: tyro.conf.Positional[tuple[str, ...]],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.png"),
    model: str | None = None,
    upscalers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-u"])] = (),
    images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1,
    grid: bool = False,
    seed: int | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: tuple[int, ...] = (),
    timesteps: tuple[str, ...] = (),
    guidance: tuple[float, ...] = (),
    sampler: tuple[str, ...] = (),
    thresholding: tuple[str, ...] = (),
    aug_level: tuple[float, ...] = (),
    image: Path | None = None,
    start_stage: int = 0,
    stop_after: int | None = None,
    max_batch_size: int = 8,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    variant: str | None = None,
    revision: str | None = None,
    clean_caption: bool = False,
    safety_checker: bool = True,
    watermark: bool = True,
    offload: Literal["none", "model", "sequential"] = "none",
) -> None:
    """Draw images from prompts.

    Settings with several values take one for all stages, or one per stage: --steps 32 16.

    Args:
        prompts: What to draw, each prompt quoted.
        output: The PNG to write; several images become NAME-0.png, NAME-1.png, ...
        model: A folder or a hub id; the embedded default if left out.
        upscalers: The stages after a DeepFloyd IF model, and a Stable Diffusion upscaler after any.
        images: How many images per prompt.
        grid: Put all images into one PNG; with several images per prompt, a row per prompt.
        seed: Image k has seed + k; drawn, and kept in the PNG, if left out.
        negative_prompt: What to lead away from.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        steps: Sampling steps.
        timesteps: The steps of a stage's table to visit: 990,500,0, a list of DeepFloyd's such as smart50, or own.
        guidance: Guidance scale; 1 is off.
        sampler: ddim, ddpm, dpmpp_2m or heun.
        thresholding: dynamic, static or none.
        aug_level: From 0 to 1: how far a stage may depart from its low-resolution image.
        image: A low-resolution image for --start-stage to enlarge.
        start_stage: The first stage to run.
        stop_after: The last stage to run.
        max_batch_size: How many images to draw at a time.
        device: cuda if there is one, else cpu.
        dtype: What the networks compute in.
        variant: Of the model's files, such as fp16.
        revision: Of the model on the hub.
        clean_caption: Clean prompts as DeepFloyd IF's training captions were.
        safety_checker: Blacken images that the model's safety checker flags.
        watermark: Put the model's watermark on images.
        offload: Keep weights off the device while they are not needed: network by network, or layer by layer.
    """
    if not prompts:
        raise ValueError('give at least one prompt, in quotes: cascade generate "a red cube"')
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output is {output}; expected a name ending in .png")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {output.absolute().parent} to write {output.name} into; make it first")
    picture = None if image is None else _open(image)

    import torch

    from pipelines.metadata import save_png
    from pipelines.process import Process
    from pipelines.text_to_image import Pipeline
    from pipelines.timesteps import from_word

    lists = per_stage([from_word(word) for word in timesteps])
    pipe = Pipeline.from_pretrained(
        model,
        upscalers=upscalers,
        dtype=getattr(torch, dtype),
        variant=variant,
        revision=revision,
        clean_caption=clean_caption,
        safety_checker=safety_checker,
        watermark=watermark,
    )
    place(pipe, Process().device(device), offload)
    out = pipe(
        list(prompts),
        negative_prompt,
        height=height,
        width=width,
        num_images_per_prompt=images,
        num_inference_steps=per_stage(steps),
        timesteps=lists,
        guidance_scale=per_stage(guidance),
        thresholding=per_stage(thresholding),
        aug_level=per_stage(aug_level),
        sampler=per_stage(sampler),
        seed=seed,
        image=picture,
        start_stage=start_stage,
        stop_after=stop_after,
        max_batch_size=max_batch_size,
    )
    if image is not None:
        for entry in out.metadata:
            entry["image"] = str(image)
    if grid:
        from pipelines.images import grid as arranged

        page = arranged(out.images, images if images > 1 and len(prompts) > 1 else None)
        whole = {**out.metadata[0], "prompts": list(prompts), "images_per_prompt": images, "grid": out.metadata}
        save_png(page, output, whole)
        print(output)
        return
    for k, (drawn, metadata) in enumerate(zip(out.images, out.metadata, strict=True)):
        path = output if len(out.images) == 1 else output.with_stem(f"{output.stem}-{k}")
        save_png(drawn, path, metadata)
        print(path)


def per_stage(values: Sequence[Any]) -> Any:
    """Nothing as None, one value as itself, several as a list: what `Pipeline` takes."""
    return None if not values else values[0] if len(values) == 1 else list(values)


def place(pipe: Any, device: str, offload: str) -> None:
    """Move a pipeline, or let it compute on the device without staying there."""
    if offload == "none":
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device)
    else:
        pipe.enable_sequential_cpu_offload(device)


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no image that can be read") from None
