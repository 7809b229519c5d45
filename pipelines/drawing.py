"""The drawing of images: one stage after the other, each over all of them, a batch at a time.

So a stage is brought to the device once, however many batches there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from conditioning.text import TextEmbedding
from pipelines.inpainting import keep_known
from pipelines.micro_batches import MicroBatches
from pipelines.settings import Settled

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Any]


@dataclass(frozen=True)
class Job:
    """Images to draw, a row each, and how many at a time. text, null: both halves of guidance. prompts, negatives: what
    the upscaler reads, if it runs.
    """

    settled: Settled
    seeds: Sequence[int]
    batches: MicroBatches
    text: TextEmbedding | None = None
    null: TextEmbedding | None = None
    prompts: Sequence[str] = ()
    negatives: Sequence[str] | None = None


def draw(
    pipe: Pipeline, jobs: Sequence[Job], callback: Callback | None = None, *, bars: bool = True
) -> list[list[Tensor]]:
    """For each job what every stage that runs has drawn, B 3 H W on the CPU; once `pipe.interrupt` is set, what there
    is by then. The jobs have the same stages and settings. bars: show the progress of each stage, if the pipeline does.

    Raises MemoryError if a single image does not fit.
    """
    pipe.interrupt = False
    settled, images = jobs[0].settled, sum(len(job.seeds) for job in jobs)
    shown = pipe._progress if bars else {"disable": True}
    drawn: list[list[Tensor]] = [[] for _ in jobs]
    for number in range(settled.first, settled.last + 1):
        with _at_work(pipe, settled, number, images, shown) as bar:
            for job, stages in zip(jobs, drawn, strict=True):
                low_res = stages[-1] if stages else job.settled.canvas.low_res
                draw_rows = partial(_draw_rows, pipe, job, number, low_res, callback, bar)
                parts = []
                for part in job.batches.run(len(job.seeds), draw_rows):
                    parts.append(part)
                    if pipe.interrupt:
                        break
                stages.append(torch.cat(parts))
                if pipe.interrupt:
                    return drawn
    return drawn


@contextmanager
def _at_work(pipe: Pipeline, settled: Settled, number: int, images: int, shown: Mapping[str, Any]) -> Iterator[tqdm]:
    """A stage, or the upscaler, is on the device; a progress bar counts the steps of every image."""
    if number == len(pipe.cascade) and pipe.upscaler is not None and settled.upscaling is not None:
        modules, anchor, name = pipe.upscaler.modules, None, pipe.upscaler.name
        steps = settled.upscaling.steps
    else:
        stage = pipe.cascade.stages[number]
        modules, anchor, name = [stage], stage.denoiser.network.noise_embedding, stage.config.name
        start = settled.canvas.start if number == settled.first else None
        steps = len(stage.grid(settled.sampling[number], 1.0 if start is None else start[0])) - 1
    options = {"total": steps * images, "desc": name, "leave": False, **shown}
    with pipe.at_work(*modules, anchor=anchor), tqdm(**options) as bar:
        yield bar


def _draw_rows(
    pipe: Pipeline, job: Job, number: int, low_res: Tensor | None, callback: Callback | None, bar: tqdm, rows: slice
) -> Tensor:
    """Some of a job's images by one stage, or by the upscaler; after an interruption, x0 as it is."""
    settled, seeds = job.settled, job.seeds[rows]
    low_res = None if low_res is None else low_res[rows]
    if number == len(pipe.cascade) and pipe.upscaler is not None and settled.upscaling is not None:
        assert low_res is not None
        return pipe.upscaler(
            low_res,
            job.prompts[rows],
            negative_prompts=None if job.negatives is None else job.negatives[rows],
            seeds=seeds,
            settings=settled.upscaling,
            on_step=bar.update,
        )
    canvas, i = settled.canvas[rows], number - settled.first
    known = None if canvas.known is None or canvas.mask is None else keep_known(canvas.known, canvas.mask)
    step = None
    for _, step in pipe.cascade.sample(
        seeds,
        [canvas.sizes[i]],
        text=None if job.text is None else job.text[rows],
        null=None if job.null is None else job.null[rows],
        samplings=[settled.sampling[number]],
        image=low_res,
        first=number,
        start=None if i or canvas.start is None else (canvas.start[0], canvas.start[1].to(pipe.device)),
        after_step=known,
    ):
        bar.update(len(seeds))
        if callback is not None:
            stage = pipe.cascade.stages[number].config.name
            callback(pipe, step.index, step.logsnr, {"stage": stage, "z": step.z, "x0": step.x0})
        if pipe.interrupt:
            return step.x0.cpu()
    assert step is not None
    return step.z.cpu()
