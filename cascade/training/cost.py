"""What training a stage costs, counted on torch's meta device: no weights, no time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade.build import build_stage
from cascade.data.samples import Batch as SampleBatch
from cascade.stage import StageConfig
from cascade.training.diffusion import Batch, DiffusionConfig, DiffusionTask
from cascade.training.loop import LoopConfig
from conditioning.text import TextEmbedding

TEXT_TOKENS = 64  # of a caption; they weigh little


@dataclass(frozen=True)
class Cost:
    """parameters; flops of one image forward and backward (a multiply-add is two); activation_bytes that the backward
    pass of one image needs, in float32.
    """

    parameters: int
    flops: int
    activation_bytes: int

    def memory(self, loop: LoopConfig, images: int, processes: int = 1) -> float:
        """Bytes of a process that computes ``images`` at a time: weights, EMA, gradients, optimizer, activations.

        An estimate: what the kernels need beside them is not in it, and checkpointed activations are taken as a tenth.
        """
        states = {"adamw": 2.0, "muon": 1.1, "adafactor": 0.02}[loop.optimizer]
        share = processes if loop.parallel == "fsdp" else 1
        activations = (
            self.activation_bytes * images * (0.5 if loop.bf16 else 1) * (0.1 if loop.activation_checkpointing else 1)
        )
        return self.parameters * 4 * (3 + states) / share + activations


def training_cost(config: StageConfig, size: tuple[int, int]) -> Cost:
    """Of images of ``size`` (height, width)."""
    with torch.device("meta"):
        stage = build_stage(config)
        image = torch.empty(1, 3, *size)
        width, text = stage.denoiser.network.text_width, None
        if width is not None:
            mask = torch.ones(1, TEXT_TOKENS, dtype=torch.bool)
            text = TextEmbedding(torch.empty(1, TEXT_TOKENS, width), mask, "kept")
        samples = SampleBatch([0], image, [""], torch.zeros(1, dtype=torch.bool), [""], [()], text)
        times = torch.zeros(1, dtype=torch.float64)
        batch = Batch(samples, times, image, times, times, image, 0)
    task = DiffusionTask(stage, [], None, DiffusionConfig(1))
    kept = {p.untyped_storage()._cdata: 0 for p in stage.parameters()}
    alive = []  # or another storage may get the same address

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            error, weight = task.errors(batch)
        (error * weight).mean().backward()
    parameters = sum(p.numel() for p in stage.parameters())
    return Cost(parameters, counter.get_total_flops(), sum(kept.values()))
