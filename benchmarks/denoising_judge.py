"""An outside judge that needs no weights but ours: how much easier its caption makes an image to denoise.

    cascade drawbench score RUN --judge "python benchmarks/denoising_judge.py" --name denoising

The score is the mean of log(error without caption / error with it) over noise levels, the error that of the clean
image which the embedded default's base predicts from the noised one. It is above 0 where the caption explains the
image. The difference of the two losses is, up to its weights, an estimate of log p(image | caption) - log p(image),
by which Li et al. 2023 ("Your diffusion model is secretly a zero-shot classifier") classify. A model that judges its
own images is no judge of its quality; this one tells captions apart.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate

from cascade import Pipeline
from cascade.denoiser import Condition
from cascade.schedules import alpha_sigma
from pipelines.evaluation.metrics.images import read_square

LEVELS = (-2.0, 0.0)  # log-SNR: much of the noise that decides what there is to be seen
BATCH = 16


class DenoisingJudge:
    def __init__(self) -> None:
        pipe = Pipeline.from_pretrained(dtype=torch.bfloat16)
        assert pipe.text_encoder is not None
        self.encoder, self.denoiser = pipe.text_encoder, pipe.cascade.stages[0].denoiser
        self.side = pipe.cascade.stages[0].config.resolution[0]

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """The score of each image, B 3 H H in [-1, 1], with its caption."""
        x = interpolate(images, self.side, mode="area")
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))  # one for all: they are compared
        prepared = self.denoiser.pair(
            Condition(text=self.encoder(captions)), Condition(text=self.encoder.null(len(x))), LEVELS
        )
        gains = []
        for logsnr in LEVELS:
            alpha, sigma = alpha_sigma(logsnr)
            x0 = self.denoiser(alpha * x + sigma * noise, logsnr, prepared).x0  # 2B 3 H W, those with caption first
            told, untold = (x0 - x.repeat(2, 1, 1, 1)).square().mean(dim=(1, 2, 3)).chunk(2)
            gains.append((untold / told).log())
        return torch.stack(gains).mean(dim=0)


def main(manifest: tyro.conf.Positional[Path], output: tyro.conf.Positional[Path]) -> None:
    """manifest, output: as pipelines/evaluation/outside.py describes them."""
    warnings.simplefilter("ignore", UserWarning)  # of words that it was not taught
    judge = DenoisingJudge()
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    with output.open("w", encoding="utf-8") as file:
        for start in range(0, len(entries), BATCH):
            some = entries[start : start + BATCH]
            images = torch.stack([read_square(Path(entry["path"])) for entry in some])
            scores = judge(images, [entry["text"] for entry in some]).tolist()
            for entry, score in zip(some, scores, strict=True):
                file.write(json.dumps({"prompt": entry["prompt"], "image": entry["image"], "score": score}) + "\n")
            file.flush()


if __name__ == "__main__":
    tyro.cli(main)
