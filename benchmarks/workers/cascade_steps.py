"""Training steps of Cascade's own loop, on request.

Its settings: {"network": of a UNetConfig, "batch": 8, "tokens": 32, "precision": "float32", "cores": [null]}.

A step is one of `Loop.run`: the making of its batch (out of images and embeddings in memory) and its metrics are in it.
With RANK and WORLD_SIZE in the environment this is a process of several.
"""

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade.build import build_stage
from cascade.config import decode
from cascade.data.samples import Sample
from cascade.denoiser import Condition
from cascade.networks.unet import UNetConfig
from cascade.stage import StageConfig
from cascade.training.diffusion import Batch, DiffusionConfig, DiffusionTask
from cascade.training.distributed import World
from cascade.training.loop import Loop, LoopConfig
from cascade.training.schedule import Budget
from conditioning.text import TextEmbedding
from workers.on_request import Finished, Requests

SIDE = 64


class InMemory:
    """Noise for images, as many as in a batch, and embeddings of their captions; a tenth of these is dropped."""

    def __init__(self, batch: int, tokens: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        self.images = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
        self.text = torch.randn(batch, tokens, width, dtype=dtype)

    def __getitem__(self, number: int, /) -> Sample:
        row = number % len(self.images)
        return Sample(number, self.images[row], str(row), number % 10 == 0, str(row))

    def encode(self, captions: list[str]) -> TextEmbedding:
        tokens = self.text[[int(caption) for caption in captions]]
        return TextEmbedding(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


class Announced(DiffusionTask):
    """Calls ``before`` whenever a batch is to be made, which is what a step begins with."""

    def __init__(self, before: Callable[[], None], *args: Any) -> None:
        super().__init__(*args)
        made = self.batch

        def batch(step: int, rows: range) -> Batch:
            before()
            return made(step, rows)

        self.batch = batch


def forward_flops(config: StageConfig, tokens: int) -> int:
    """Of one image; on the meta device, since torch counts nothing in the CPU's fused attention."""
    width = config.network.text_width
    assert width is not None
    with torch.device("meta"):
        denoiser = build_stage(config).denoiser
        text = TextEmbedding(torch.empty(1, tokens, width), torch.ones(1, tokens, dtype=torch.bool))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            prepared = denoiser.prepare(Condition(text), batch=1)
            denoiser.output(torch.empty(1, 3, *config.resolution), torch.zeros(1), prepared)
    return counter.get_total_flops()


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    core = settings["cores"][int(os.environ.get("RANK", 0))]
    if core is not None:
        os.sched_setaffinity(0, [core])
    requests = Requests()
    torch.manual_seed(0)
    network = decode(UNetConfig, settings["network"], "network")
    assert network.text_width is not None
    stage = build_stage(StageConfig("base", (SIDE, SIDE), network))
    data = InMemory(settings["batch"], settings["tokens"], network.text_width)
    task = Announced(requests.wait, stage, data, data.encode, DiffusionConfig(settings["batch"]))
    world = World.join("cpu")[0] if "RANK" in os.environ else World()
    config = LoopConfig(bf16=settings["precision"] == "bfloat16", checkpoint_minutes=1e9)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(task, config, Path(folder), world=world)
        parameters = sum(parameter.numel() for parameter in stage.parameters())
        requests.answer(flops=forward_flops(stage.config, settings["tokens"]), parameters=parameters)
        with suppress(Finished):
            loop.run(Budget(steps=10**6))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
