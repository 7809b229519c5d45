"""`cascade batch`: a prompt file to a run folder."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipelines.generate import per_stage, place
from pipelines.process import Process


def batch(
    prompts: tyro.conf.Positional[str],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: str | None = None,
    upscalers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-u"])] = (),
    images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1,
    seed: int = 0,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: tuple[int, ...] = (),
    timesteps: tuple[str, ...] = (),
    guidance: tuple[float, ...] = (),
    sampler: tuple[str, ...] = (),
    thresholding: tuple[str, ...] = (),
    aug_level: tuple[float, ...] = (),
    stop_after: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    variant: str | None = None,
    revision: str | None = None,
    clean_caption: bool = False,
    safety_checker: bool = True,
    watermark: bool = True,
    offload: Literal["none", "model", "sequential"] = "none",
) -> int:
    """Draw images for all prompts of a file into a folder; run again, it makes what is missing.

    Settings with several values take one for all stages, or one per stage: --steps 32 16. To share the work among
    processes: torchrun --nproc-per-node 4 -m pipelines.batch PROMPTS -o DIR, or accelerate launch -m pipelines.batch.
    The exit status is 1 if images could not be made; errors.jsonl in the folder says why.

    Args:
        prompts: A txt, csv, tsv or jsonl file, or a suite: drawbench, partiprompts, geneval, toybox.
        output: The folder to write.
        model: A folder or a hub id; the embedded default if left out.
        upscalers: The stages after a DeepFloyd IF model, and a Stable Diffusion upscaler after any.
        images: How many images per prompt.
        seed: Image k of prompt i has seed + i * IMAGES + k.
        negative_prompt: What to lead away from.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        steps: Sampling steps.
        timesteps: The steps of a stage's table to visit: 990,500,0, a list of DeepFloyd's such as smart50, or own.
        guidance: Guidance scale; 1 is off.
        sampler: ddim, ddpm, dpmpp_2m or heun.
        thresholding: dynamic, static or none.
        aug_level: From 0 to 1: how far a stage may depart from its low-resolution image.
        stop_after: The last stage to run.
        batch_size: How many images to draw at a time; halved where memory runs out.
        device: cuda if there is one, else cpu.
        dtype: What the networks compute in.
        variant: Of the model's files, such as fp16.
        revision: Of the model on the hub.
        clean_caption: Clean prompts as DeepFloyd IF's training captions were.
        safety_checker: Blacken images that the model's safety checker flags.
        watermark: Put the model's watermark on images.
        offload: Keep weights off the device while they are not needed: network by network, or layer by layer.
    """
    from pipelines.evaluation.public_suites import find_prompts

    found = find_prompts(prompts)

    import torch

    from pipelines.batch.generation import generate_batch
    from pipelines.text_to_image import Pipeline
    from pipelines.timesteps import from_word

    process = Process.from_environment()
    options: dict[str, Any] = {
        "num_inference_steps": per_stage(steps),
        "timesteps": per_stage([from_word(word) for word in timesteps]),
        "guidance_scale": per_stage(guidance),
        "thresholding": per_stage(thresholding),
        "aug_level": per_stage(aug_level),
        "sampler": per_stage(sampler),
    }
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
    place(pipe, process.device(device), offload)
    result = generate_batch(
        pipe,
        found,
        output,
        images_per_prompt=images,
        seed=seed,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        stop_after=stop_after,
        batch_size=batch_size,
        process=process,
        **options,
    )
    share = "" if process.world == 1 else f" (process {process.rank} of {process.world})"
    print(f"{output}{share}: {result.made} images made, {result.kept} kept, {result.failed} failed")
    process.wait_for_the_others()
    return 1 if result.failed else 0
