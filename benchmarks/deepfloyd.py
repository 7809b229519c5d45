"""DeepFloyd IF on Cascade against diffusers' pipelines: time per denoising step, memory, and the share of each change.

    python benchmarks/deepfloyd.py [--networks I-M II-M] [--divide 3] [--dtypes float32 bfloat16] [--batches 1 4]
    python benchmarks/deepfloyd.py --modes compiled
    python benchmarks/deepfloyd.py --device cuda --divide 1 --steps 20 --dtypes bfloat16 --modes eager compiled

The networks are the published ones with random weights, their channels and the text's width divided by ``divide``. Both
sides hold the same weights, are given the same embeddings, guide as IF does, and are called as users call them
(`IFPipeline`, `IFSuperResolutionPipeline`, `Pipeline`), alternately. A step's time is that of a call, text encoding
apart, over its steps: on one thread of a CPU processor time, which other processes lengthen little, else wall time.
Memory is a call's peak beyond what was held before, the weights. "difference" is that of the images drawn from the same
noise, of the pixel where it is greatest, relative to the greatest pixel.

The second table undoes in Cascade one thing at a time that diffusers does not do, and shows how much longer a step is.
"""

import ctypes
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro
from environment import environment
from torch import Tensor

from cascade import Pipeline
from cascade.build import build_stage, deepfloyd_tensors
from cascade.chain import Cascade
from cascade.config import decode
from cascade.denoiser import Denoiser, ModulationTable, Prepared
from cascade.randomness import Draws
from cascade.schedules import alpha_sigma
from cascade.stage import StageConfig
from conditioning.text import TextEmbedding
from weights.deepfloyd import stage_config

Network = Literal["I-M", "I-L", "I-XL", "II-M", "II-L"]
CHANNELS: dict[Network, list[int]] = {
    "I-M": [192, 384, 576, 768],
    "I-L": [320, 640, 960, 1280],
    "I-XL": [704, 1408, 2112, 2816],
    "II-M": [96, 192, 384, 576, 768],
    "II-L": [160, 320, 640, 960, 1280],
}
GUIDANCE = {"I": 7.0, "II": 4.0}
TOKENS, TEXT_WIDTH, HEAD = 77, 4096, 64  # HEAD: channels of one
SCALE = 1.4142271248762552  # by which stage II divides what its blocks put out
SCHEDULER: dict[str, Any] = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
}


def unet_config(network: Network, divide: int) -> dict[str, Any]:
    """A published network as diffusers describes it, its widths divided."""
    second = network.startswith("II-")
    attends = [False, False, False, True, True] if second else [False, True, True, True]
    most = math.gcd(*(width for width, attended in zip(CHANNELS[network], attends, strict=True) if attended)) // HEAD
    if most % divide:
        raise SystemExit(f"--divide {divide} leaves no whole heads of {HEAD} channels in {network}; try 1 or {most}")
    channels = [width // divide for width in CHANNELS[network]]
    config = {
        "sample_size": 256 if second else 64,
        "in_channels": 6 if second else 3,
        "out_channels": 6,
        "act_fn": "gelu",
        "block_out_channels": channels,
        "layers_per_block": [2, 2, 3, 5, 5] if second else 3,
        "down_block_types": ["SimpleCrossAttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attends],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ["SimpleCrossAttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in attends[::-1]],
        "only_cross_attention": network == "II-M",
        "attention_head_dim": HEAD,
        "cross_attention_dim": channels[-1],
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": TEXT_WIDTH // divide // 64 * 64,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 64,
        "resnet_time_scale_shift": "scale_shift",
    }
    if second:
        config |= {
            "class_embed_type": "timestep",
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": SCALE,
            "mid_block_scale_factor": SCALE,
            "time_embedding_act_fn": "gelu",
            "time_embedding_dim": channels[-1],
        }
    return config


class Contest:
    """The same network in diffusers' pipeline and in ours, and the same embeddings for both."""

    def __init__(self, network: Network, divide: int, side: int, dtype: torch.dtype, device: torch.device) -> None:
        import diffusers
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        self.second, self.side, self.dtype, self.device = network.startswith("II-"), side, dtype, device
        self.scale = GUIDANCE["II" if self.second else "I"]
        config = unet_config(network, divide)
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        with device:
            unet = UNet2DConditionModel(**config).eval()
        torch.set_default_dtype(torch.float32)

        own: dict[str, Any] = SCHEDULER | {"sample_max_value": 1.0 if self.second else 1.5}
        parts: dict[str, Any] = {"unet": unet, "scheduler": diffusers.DDPMScheduler(**own)}
        stored = {"unet": config, "scheduler": own | {"_class_name": "DDPMScheduler"}}
        absent = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
        cls: Any = diffusers.IFPipeline
        if self.second:
            cls = diffusers.IFSuperResolutionPipeline
            parts["image_noising_scheduler"] = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
            stored["image_noising_scheduler"] = {"beta_schedule": "squaredcos_cap_v2", "_class_name": "DDPMScheduler"}
        self.diffusers: Any = cls(**parts, **dict.fromkeys(absent), requires_safety_checker=False)
        self.diffusers.set_progress_bar_config(disable=True)

        with torch.device("meta"):
            stage = build_stage(decode(StageConfig, stage_config(stored, network), network))
        stored_tensors: Any = StateDict(unet)
        tensors = dict(deepfloyd_tensors(stage.config, stored_tensors))
        stage.denoiser.network.load_state_dict(tensors, assign=True)
        self.stage = stage
        self.cascade = Pipeline(Cascade([stage]))
        self.cascade.set_progress_bar_config(disable=True)

    def inputs(self, batch: int) -> None:
        """Set the embeddings of a batch, and what stage II enlarges."""
        generator = torch.Generator().manual_seed(1)
        width = self.stage.denoiser.network.text_width or 0
        both = torch.randn(2 * batch, TOKENS, width, generator=generator).to(self.device, self.dtype)
        mask = torch.ones(batch, TOKENS, dtype=torch.bool, device=self.device)
        self.batch = batch
        self.text, self.null = (TextEmbedding(half, mask, "kept") for half in both.chunk(2))
        low = self.side // 4
        self.low_res = torch.rand(batch, 3, low, low, generator=generator) if self.second else None

    def by_diffusers(self, steps: int) -> Tensor:
        known: dict[str, Any] = {} if self.low_res is None else {"image": self.low_res * 2 - 1, "noise_level": 250}
        return self.diffusers(
            prompt_embeds=self.text.tokens,
            negative_prompt_embeds=self.null.tokens,
            num_inference_steps=steps,
            guidance_scale=self.scale,
            height=self.side,
            width=self.side,
            output_type="pt",
            **known,
        ).images

    def by_cascade(self, steps: int) -> Tensor:
        """Images in [0, 1]."""
        return self.cascade(
            prompt_embeds=self.text,
            negative_prompt_embeds=self.null,
            num_inference_steps=steps,
            guidance_scale=self.scale,
            height=self.side,
            width=self.side,
            image=self.low_res,
            aug_level=0.25 if self.second else None,
            seed=0,
            output_type="pt",
        ).images

    def difference(self, steps: int) -> float:
        """Of the images that both draw from the noise of `Draws`."""
        draws = Draws(list(range(self.batch)), 0)
        purposes = iter(("start", "augmentation") if self.second else ("start",))

        def randn_tensor(shape: Sequence[int], *, device: Any = None, dtype: Any = None, **_: Any) -> Tensor:
            return draws.normal(next(purposes, "steps"), tuple(shape[1:])).to(device, dtype)

        home = "diffusers.pipelines.deepfloyd_if"
        homes = (f"{home}.pipeline_if", f"{home}.pipeline_if_superresolution", "diffusers.schedulers.scheduling_ddpm")
        with ExitStack() as stack:
            for module in homes:
                stack.enter_context(patch(f"{module}.randn_tensor", randn_tensor))
            wanted = self.by_diffusers(steps).float().cpu().clamp(-1, 1)
        found = self.by_cascade(steps).float() * 2 - 1
        return ((found - wanted).abs().max() / wanted.abs().max()).item()

    def compile(self) -> None:
        self.diffusers.unet.compile(dynamic=False)
        self.stage.denoiser.network.compile(dynamic=False)


class StateDict:
    """A network's tensors as `weights.shards.StoredTensors` gives them."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.tensors = network.state_dict()

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long the work takes: processor time on one thread, else wall time."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def peak_megabytes(work: Callable[[], object], device: torch.device) -> float:
    """The most memory the work takes beyond what is held before it; NaN where it cannot be known."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not sys.platform.startswith("linux"):
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, so that it counts when it is taken again
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1e3


def resident(field: str) -> int:
    """Kilobytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# What diffusers does otherwise. Each undoes one thing in a contest's stage.


@contextmanager
def altered(denoiser: Denoiser, change: Callable[[Prepared], Prepared]) -> Iterator[None]:
    """A denoiser for which ``change`` computes something anew at every step."""
    output = denoiser.output
    with patch.object(denoiser, "output", lambda z, level, prepared: output(z, level, change(prepared))):
        yield


def text_every_step(contest: Contest) -> AbstractContextManager:
    denoiser = contest.stage.denoiser

    def change(prepared: Prepared) -> Prepared:
        both = TextEmbedding.cat([contest.text, contest.null])
        return replace(prepared, text=denoiser.network.text_features(both.tokens, both.visible))

    return altered(denoiser, change)


def modulations_every_step(contest: Contest) -> AbstractContextManager:
    denoiser = contest.stage.denoiser

    def change(prepared: Prepared) -> Prepared:
        both = TextEmbedding.cat([contest.text, contest.null])
        level = torch.full((len(both),), 250.0, device=contest.device) if contest.second else None
        condition = denoiser.network.embed_condition(len(both), both.tokens, both.visible, level, None)
        return replace(prepared, condition=condition, table=ModulationTable(denoiser, condition, ()))

    return altered(denoiser, change)


def whole_quantile(contest: Contest) -> AbstractContextManager:
    """torch.quantile in thresholding, and also where its result is clamped to 1."""

    def threshold(x0: Tensor) -> Tensor:
        s = torch.quantile(x0.abs().flatten(1), SCHEDULER["dynamic_thresholding_ratio"], dim=1)
        s = s.clamp(1, 1.0 if contest.second else 1.5)[:, None, None, None]
        return torch.clamp(x0, -s, s) / s

    return patch("cascade.thresholding.Thresholding.function", lambda self: threshold)


def plain_layout(contest: Contest) -> AbstractContextManager:
    network = contest.stage.denoiser.network

    def lay_out() -> None:
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    return patch.object(contest.stage.denoiser, "lay_out", lay_out)


def plain_norms(contest: Contest) -> AbstractContextManager:
    return patch("cascade.networks.blocks.GroupNorm.forward", torch.nn.GroupNorm.forward)


def scalars_on_the_device(contest: Contest) -> AbstractContextManager:
    """Also the noise, which comes from the host, is waited for."""

    def tensors(logsnr: float) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(value, device=contest.device) for value in alpha_sigma(logsnr))

    stack = ExitStack()
    stack.enter_context(patch("cascade.samplers.alpha_sigma", tensors))
    stack.enter_context(patch.object(Tensor, "pin_memory", lambda self: self))
    return stack


def all_of_them(contest: Contest) -> AbstractContextManager:
    stack = ExitStack()
    for undo in list(UNDONE.values())[:-1]:
        stack.enter_context(undo(contest))
    return stack


UNDONE: dict[str, Callable[[Contest], AbstractContextManager]] = {
    "text: keys, values and their projections at every step": text_every_step,
    "embeddings, and scale and shift of every block, at every step": modulations_every_step,
    "torch.quantile for thresholding": whole_quantile,
    "weights in torch's usual layout": plain_layout,
    "small maps in torch's own group norm": plain_norms,
    "the sampler's numbers on the device": scalars_on_the_device,
    "all of these": all_of_them,
}


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(
    networks: tuple[Network, ...] = ("I-M", "II-M"),
    divide: int = 3,
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16"),
    modes: tuple[Literal["eager", "compiled"], ...] = ("eager",),
    batches: tuple[int, ...] = (1, 4),
    side: int = 256,
    steps: int = 4,
    runs: int = 3,
    shares: bool = True,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the tables.

    Args:
        networks: Of the published ones.
        divide: What their widths are divided by.
        dtypes: What they compute in.
        modes: eager, or compiled by torch.compile, both sides the same way.
        batches: Images drawn at a time.
        side: The sides of stage II's images in pixels; those of stage I are 64.
        steps: Denoising steps of a call.
        runs: Repetitions, of which the median is shown.
        shares: Whether to undo one thing at a time, too, with the first batch in eager mode.
        device: cpu or cuda.
    """
    warnings.simplefilter("ignore")
    for network in networks:
        unet_config(network, divide)  # refuses before anything is measured
    print(f"{environment()}\ndiffusers {version('diffusers')}, {torch.get_num_threads()} threads of the CPU")
    print(f"1/{divide} of the widths, {steps} steps, stage II at {side} px; median of {runs} (least to most)\n")
    print(
        "| network | dtype | mode | batch | diffusers s/step | Cascade | ratio | diffusers MB | Cascade | difference |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    shared: list[str] = []
    for network, dtype, mode in product(networks, dtypes, modes):
        pixels = side if network.startswith("II-") else 64
        contest = Contest(network, divide, pixels, getattr(torch, dtype), torch.device(device))
        if mode == "compiled":
            contest.compile()
        for batch in batches:
            row = compare(contest, batch, steps, runs)
            print(f"| {network} | {dtype} | {mode} | {batch} | {row} |", flush=True)
        if shares and mode == "eager":
            contest.inputs(batches[0])
            shared += [f"| {network} | {dtype} | {line} |" for line in undone(contest, steps, runs)]
        del contest  # before the next one is built
    if shared:
        print(f"\nUndone in Cascade, batch {batches[0]}: how long a step takes then, relative to what it takes\n")
        print("\n".join(["| network | dtype | undone | time |", "|---|---|---|---:|", *shared]))


def compare(contest: Contest, batch: int, steps: int, runs: int) -> str:
    """A row of the first table."""
    contest.inputs(batch)
    difference = contest.difference(steps)  # and what torch sets up, or compiles, at a first call
    sides = (partial(contest.by_diffusers, steps), partial(contest.by_cascade, steps))
    timed = [[seconds(work, contest.device) / steps for work in sides] for _ in range(runs)]
    theirs, ours = (statistics.median(column) for column in zip(*timed, strict=True))
    memory = [peak_megabytes(work, contest.device) for work in sides]
    ratio = spread([a / b for a, b in timed])
    return f"{theirs:.4f} | {ours:.4f} | {ratio} | {memory[0]:.0f} | {memory[1]:.0f} | {difference:.1e}"


def undone(contest: Contest, steps: int, runs: int) -> Iterator[str]:
    """Rows of the second table."""
    times: dict[str, list[float]] = {name: [] for name in UNDONE}
    work = partial(contest.by_cascade, steps)
    work()
    for _ in range(runs):
        plain = seconds(work, contest.device)
        for name, undo in UNDONE.items():
            with undo(contest):
                times[name].append(seconds(work, contest.device) / plain)
    return (f"{name} | {spread(ratios)}" for name, ratios in times.items())


if __name__ == "__main__":
    tyro.cli(main)
