"""What share of a GPU's peak a training step of Imagen's 64 px base reaches, and where the rest goes."""

import itertools
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cascade.build import build_stage
from cascade.presets import imagen_base_2b
from cascade.training.cost import training_cost
from cascade.training.diffusion import Batch, DiffusionConfig, DiffusionTask
from cascade.training.distributed import World
from cascade.training.loop import Loop, LoopConfig
from cascade.training.metrics import Figures, memory_gb, peak_flops
from cascade.training.schedule import Budget
from conditioning.text import TextEmbedding
from workers.cascade_steps import InMemory
from workers.on_request import Finished

TOKENS, WARMUP, PROFILED = 64, 5, 2

# What an operation counts as: the first line with a word of its name.
KINDS = {
    "compiled kernels": ("triton", "Compiled"),
    "attention": ("scaled_dot_product", "flash", "efficient_attention"),
    "convolutions": ("conv",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::baddbmm"),
    "norms": ("norm",),
    "optimizer and EMA": ("adam", "_foreach", "lerp"),
    "copies": ("copy", "cat", "contiguous", "clone", "Memcpy", "Memset", "fill", "zero"),
    "activations and other point-wise work": ("aten::",),
}


def kind(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


class Clocked(DiffusionTask):
    """Notes when steps begin, all that was asked of the device before being done; profiles the last ones."""

    def __init__(self, steps: int, *args: Any) -> None:
        super().__init__(*args)
        self.steps, self.begun, self.times = steps, 0, []
        cuda = self.model.network.noise_embedding.linear2.weight.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self.profiler = profile(activities=activities, acc_events=True)
        self.synchronize = torch.cuda.synchronize if cuda else lambda: None

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        self.synchronize()
        if WARMUP <= self.begun <= WARMUP + self.steps:
            self.times.append(time.perf_counter())
        if self.begun == WARMUP + self.steps:
            self.profiler.start()
        if self.begun == WARMUP + self.steps + PROFILED:
            self.profiler.stop()
            raise Finished
        self.begun += 1
        return super().loss(batch)


def measure(device: str, width: int, batch: int, steps: int, workers: int, compile: bool) -> None:
    """Print the rate, the share of the peak and the profile.

    Images come from memory by the loop's own loader; embeddings of captions are on the device already.
    """
    preset = imagen_base_2b()
    config = replace(preset, network=replace(preset.network, width=width))
    assert config.network.text_width is not None
    where = World.join(device)[1]
    stage = build_stage(config).to(where)
    data = InMemory(batch, TOKENS, config.network.text_width, torch.bfloat16)
    on_device = data.text.to(where)
    data.text = torch.empty(0)  # the loader's processes have no use for it

    def encode(captions: list[str]) -> TextEmbedding:
        tokens = on_device[torch.tensor([int(caption) for caption in captions], device=where)]
        return TextEmbedding(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=where))

    task = Clocked(steps, stage, data, encode, DiffusionConfig(batch))
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(task, LoopConfig(workers=workers, compile=compile, checkpoint_minutes=1e9), Path(folder))
        with suppress(Finished):
            loop.run(Budget(steps=10**6))
    seconds = statistics.median(b - a for a, b in itertools.pairwise(task.times))
    cost, peak = training_cost(config, config.resolution), peak_flops(where)
    rate = cost.flops * batch / seconds
    share = f"{rate / peak:.1%} of the peak" if peak is not None else "of a peak that is not known"
    print(f"{cost.parameters / 1e6:.0f} M parameters, batches of {batch}, bf16{', compiled' * compile}, {loop.device}")
    print(f"{batch / seconds:.1f} images/s, {rate / 1e12:.2f} TFLOP/s: {share}; {memory_gb(where):.1f} GB\n")
    print_profile(task.profiler, 1e6 * seconds, cuda=where.type == "cuda")


def print_profile(profiler: profile, step: float, *, cuda: bool) -> None:
    """The time of operations by kind, and the longest of them; ``step``: microseconds of one that was not profiled."""
    events = [
        (event.key, (event.self_device_time_total if cuda else event.self_cpu_time_total) / PROFILED)
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU  # operations; the kernels that they start would be counted again
    ]
    kinds: dict[str, float] = {}
    for name, spent in events:
        kinds[kind(name)] = kinds.get(kind(name), 0.0) + spent
    if cuda:
        kinds["nothing on the device"] = max(0.0, step - sum(kinds.values()))
    total = sum(kinds.values())
    print("| what | ms/step | share |\n|---|---:|---:|")
    for name, spent in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"| {name} | {spent / 1e3:.1f} | {spent / total:.1%} |")
    print("\n| operation | ms/step | share |\n|---|---:|---:|")
    for name, spent in sorted(events, key=lambda item: -item[1])[:15]:
        print(f"| `{name[:80]}` | {spent / 1e3:.1f} | {spent / total:.1%} |")
