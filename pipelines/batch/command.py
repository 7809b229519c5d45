"""`cascade batch`: a prompt file to a run folder."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipelines.generate import per_stage
from pipelines.process import Process


def batch(
    prompts: tyro.conf.Positional[str],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: str | None = None,
    images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1,
    seed: int = 0,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: tuple[int, ...] = (),
    guidance: tuple[float, ...] = (),
    sampler: tuple[str, ...] = (),
    thresholding: tuple[str, ...] = (),
    aug_level: tuple[float, ...] = (),
    stop_after: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> int:
    """Draw images for all prompts of a file into a folder; run again, it makes what is missing.

    Settings with several values take one for all stages, or one per stage: --steps 32 16. To share the work among
    processes: torchrun --nproc-per-node 4 -m pipelines.batch PROMPTS -o DIR, or accelerate launch -m pipelines.batch.
    The exit status is 1 if images could not be made; errors.jsonl in the folder says why.

    Args:
        prompts: A txt, csv, tsv or jsonl file, or a suite: drawbench, partiprompts, geneval, toybox.
        output: The folder to write.
        model: A folder or a hub id; the embedded default if left out.
        images: How many images per prompt.
        seed: Image k of prompt i has seed + i * IMAGES + k.
        negative_prompt: What to lead away from.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        steps: Sampling steps.
        guidance: Guidance scale; 1 is off.
        sampler: ddim, ddpm, dpmpp_2m or heun.
        thresholding: dynamic, static or none.
        aug_level: From 0 to 1: how far a stage may depart from its low-resolution image.
        stop_after: The last stage to run.
        batch_size: How many images to draw at a time; halved where memory runs out.
        device: cuda if there is one, else cpu.
        dtype: What the networks compute in.
    """
    from pipelines.evaluation.public_suites import find_prompts

    found = find_prompts(prompts)

    import torch

    from pipelines.batch.generation import generate_batch
    from pipelines.text_to_image import Pipeline

    process = Process.from_environment()
    pipe = Pipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(process.device(device))
    options: dict[str, Any] = {
        "num_inference_steps": per_stage(steps),
        "guidance_scale": per_stage(guidance),
        "thresholding": per_stage(thresholding),
        "aug_level": per_stage(aug_level),
        "sampler": per_stage(sampler),
    }
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
