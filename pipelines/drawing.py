"""The drawing of a call: one stage after the other, each over all images, a batch at a time.

So a stage is brought to the device once, however many batches there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from cascade.stage import Sampling
from conditioning.text import TextEmbedding
from pipelines.arguments import Canvas
from pipelines.inpainting import keep_known
from pipelines.upscaler import Upscaling

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Any]


@dataclass(frozen=True)
class Job:
    """What a call has settled, one row per image. settings: of every stage of the cascade. first: the first to run.

    upscaling: of the upscaler, if it runs, which reads the prompts.
    """

    plan: Canvas
    text: TextEmbedding | None
    null: TextEmbedding | None
    settings: Sequence[Sampling]
    first: int
    batch: int
    upscaling: Upscaling | None = None
    prompts: Sequence[str] = ()
    negatives: Sequence[str] | None = None


def draw(pipe: Pipeline, seeds: Sequence[int], job: Job, callback: Callback | None) -> list[Tensor]:
    """What each stage that runs has drawn, B 3 H W on the CPU. After an interruption, what there is by then."""
    drawn: list[Tensor] = []
    chunks = [slice(begin, begin + job.batch) for begin in range(0, len(seeds), job.batch)]
    for i in range(len(job.plan.sizes)):
        stage = pipe.cascade.stages[job.first + i]
        start = 1.0 if i or job.plan.start is None else job.plan.start[0]
        steps = len(stage.grid(job.settings[job.first + i], start)) - 1
        parts: list[Tensor] = []
        with (
            pipe.at_work(stage, anchor=stage.denoiser.network.noise_embedding),
            progress(pipe, stage.config.name, steps * len(chunks)) as bar,
        ):
            for chunk in chunks:
                low_res = drawn[-1] if drawn else job.plan.low_res
                parts.append(_draw_batch(pipe, seeds, job, i, chunk, low_res, callback, bar))
                if pipe.interrupt:
                    break
        drawn.append(torch.cat(parts))
        if pipe.interrupt:
            return drawn
    if job.upscaling is not None and pipe.upscaler is not None:
        images = drawn[-1] if drawn else job.plan.low_res
        assert images is not None
        with (
            pipe.at_work(*pipe.upscaler.modules),
            progress(pipe, pipe.upscaler.name, job.upscaling.steps * len(images)) as bar,
        ):
            drawn.append(
                pipe.upscaler(
                    images,
                    job.prompts,
                    negative_prompts=job.negatives,
                    seeds=seeds,
                    settings=job.upscaling,
                    on_step=bar.update,
                )
            )
    return drawn


def _draw_batch(
    pipe: Pipeline,
    seeds: Sequence[int],
    job: Job,
    i: int,
    chunk: slice,
    low_res: Tensor | None,
    callback: Callback | None,
    bar: Any,
) -> Tensor:
    """Some of the images by stage number ``i`` of those that run; after an interruption, x0 as it is."""
    number, plan = job.first + i, job.plan[chunk]
    name = pipe.cascade.stages[number].config.name
    known = None if plan.known is None or plan.mask is None else keep_known(plan.known, plan.mask)
    begin = None if i or plan.start is None else (plan.start[0], plan.start[1].to(pipe.device))
    step = None
    for _, step in pipe.cascade.sample(
        seeds[chunk],
        [plan.sizes[i]],
        text=None if job.text is None else job.text[chunk],
        null=None if job.null is None else job.null[chunk],
        samplings=[job.settings[number]],
        image=None if low_res is None else low_res[chunk],
        first=number,
        start=begin,
        after_step=known,
    ):
        bar.update()
        if callback is not None:
            callback(pipe, step.index, step.logsnr, {"stage": name, "z": step.z, "x0": step.x0})
        if pipe.interrupt:
            return step.x0.cpu()
    assert step is not None
    return step.z.cpu()


@contextmanager
def progress(pipe: Pipeline, name: str, steps: int) -> Iterator[Any]:
    with tqdm(**({"total": steps, "desc": name, "leave": False} | pipe._progress)) as bar:
        yield bar
