"""`cascade batch`: a prompt file to a run folder."""

from pathlib import Path
from typing import Annotated

import tyro

from pipelines.options import Drawing, Loading, named_as_options
from pipelines.process import Process


@named_as_options()
def batch(
    prompts: tyro.conf.Positional[str],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    loading: Loading,
    drawing: Drawing,
    images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1,
    seed: int = 0,
    guidance: tuple[float, ...] = (),
    batch_size: int = 8,
) -> int:
    """Draw images for all prompts of a file into a folder; run again, it makes what is missing.

    To share the work among processes: torchrun --nproc-per-node 4 -m pipelines.batch PROMPTS -o DIR, or accelerate
    launch -m pipelines.batch. The exit status is 1 if images could not be made; errors.jsonl in the folder says why.

    Args:
        prompts: A txt, csv, tsv or jsonl file, or a suite: drawbench, partiprompts, geneval, toybox.
        output: The folder to write.
        images: How many images per prompt.
        seed: Image k of prompt i has seed + i * IMAGES + k.
        guidance: Guidance scale, one for all stages or one per stage; 1 is off.
        batch_size: How many images to draw at a time; halved where memory runs out.
    """
    from pipelines.evaluation.public_suites import find_prompts

    found = find_prompts(prompts)

    from pipelines.batch.generation import generate_batch

    process = Process.from_environment()
    options = drawing.options(guidance)
    result = generate_batch(
        loading.pipeline(process),
        found,
        output,
        images_per_prompt=images,
        seed=seed,
        negative_prompt=drawing.negative_prompt,
        batch_size=batch_size,
        process=process,
        **options,
    )
    share = "" if process.world == 1 else f" (process {process.rank} of {process.world})"
    print(f"{output}{share}: {result.made} images made, {result.kept} kept, {result.failed} failed")
    process.wait_for_the_others()
    return 1 if result.failed else 0
