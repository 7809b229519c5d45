"""Drawing and judging: what the measurements do with a pipeline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cascade import Pipeline
from cascade.data.toybox import Description
from cascade.training.precision import computes_bf16
from conditioning.lowres import upsample
from pipelines.batch import generate_batch, read_run
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.judge import Verdict, judge
from pipelines.evaluation.suite import TOYBOX, Prompt, read_suite

BATCH = 16
JUDGED = 256  # px


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    model: a folder; the embedded default if left out. dtype, device: what the networks compute in, and where; bfloat16
    if left out, or float32 where that is merely emulated.
    prompts: how many of each of the suite's categories, evenly spaced; all with None. images: of each prompt.
    """

    model: str | None = None
    dtype: str | None = None
    device: str = "cpu"
    prompts: int | None = 25
    images: int = 4

    def pipeline(self) -> Pipeline:
        own = "bfloat16" if computes_bf16(torch.device(self.device).type) else "float32"
        pipe = Pipeline.from_pretrained(self.model, dtype=getattr(torch, self.dtype or own)).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def suite(self, *categories: str) -> list[Prompt]:
        """The prompts of the toybox suite, or of some of its categories."""
        prompts, chosen = read_suite(TOYBOX), []
        for category in categories or dict.fromkeys(prompt.category for prompt in prompts):
            members = [prompt for prompt in prompts if prompt.category == category]
            count = len(members) if self.prompts is None else min(self.prompts, len(members))
            chosen += [members[row] for row in np.linspace(0, len(members) - 1, count).round().astype(int)]
        return chosen


def draw(
    pipe: Pipeline, prompts: Sequence[Prompt], each: int, *, first_seed: int = 0, **options: Any
) -> Iterator[Tensor]:
    """`each` images of every prompt, N 3 H W in [-1, 1] at a time; image k of all has seed first_seed + k, whatever the
    options."""
    at_once = max(1, BATCH // each)
    for start in range(0, len(prompts), at_once):
        some = [prompt.prompt for prompt in prompts[start : start + at_once]]
        out = pipe(some, num_images_per_prompt=each, seed=first_seed + start * each, output_type="pt", **options)
        yield from out.images.float().mul(2).sub(1).unflatten(0, (-1, each))


def draw_to(folder: Path, setting: Setting, prompts: Sequence[Prompt]) -> list[list[Path]]:
    """The files of every prompt's images, drawn into a run folder; what is already there is not drawn again."""
    texts = [prompt.prompt for prompt in prompts]
    generate_batch(setting.pipeline(), texts, folder, images_per_prompt=setting.images, batch_size=BATCH)
    return [list(paths) for _, _, paths in read_run(folder)]


def read_images(files: Sequence[Path]) -> Tensor:
    """N 3 H W in [-1, 1]."""
    arrays = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def verdicts(detector: Detector, images: Tensor, description: Description) -> list[Verdict]:
    """One an image. Images below JUDGED px are enlarged, and then their materials, which they cannot show, ignored."""
    if images.shape[-1] < JUDGED:
        images, description = upsample(images, (JUDGED, JUDGED)), without_materials(description)
    return [judge(description, found) for found in detector.find(images)]


def expected(prompt: Prompt) -> Description:
    """The scene of a toybox prompt: every one has its own."""
    assert prompt.expected is not None, prompt
    return prompt.expected


def without_materials(description: Description) -> Description:
    return replace(description, looks=tuple(replace(look, material="plain") for look in description.looks))
