"""What an image costs: GFLOPs counted, and sampling time against plain convolutions of as many GFLOPs.

    python benchmarks/cost.py [--model DIR] [--dtype bfloat16] [--batch 1] [--runs 5]

The reference is a bf16 3 x 3 convolution, 256 -> 256 channels at 32 x 32, repeated until it has done the same number of
floating-point operations: what this machine does at its best. Both are timed alternately in one run; medians are shown.
One multiply-add is two operations.
"""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
import tyro
from environment import environment

from cascade import Pipeline
from cascade.build import build_stage
from cascade.flops import image_flops

CHANNELS, SIDE = 256, 32


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def reference(flops: int, device: torch.device) -> Callable[[], None]:
    """Convolutions of about as many operations, in whole passes of at least one."""
    convolution = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, device=device, dtype=torch.bfloat16)
    x = torch.randn(8, CHANNELS, SIDE, SIDE, device=device, dtype=torch.bfloat16)
    each = 2 * 9 * CHANNELS**2 * SIDE**2 * len(x)
    passes = max(1, round(flops / each))

    @torch.no_grad()
    def work() -> None:
        for _ in range(passes):
            convolution(x)

    return work


def main(
    model: str | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    batch: int = 1,
    runs: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the table.

    Args:
        model: A folder; the embedded default if left out.
        dtype: What the networks compute in.
        batch: Images drawn at a time.
        runs: Repetitions, of which the median is shown.
        device: cpu or cuda.
    """
    pipe = Pipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    embeds, null = pipe.encode_prompt(["a red car to the left of a blue house"] * batch)
    previous = None
    print(f"{environment()}\n{dtype}, batch {batch}, median of {runs}\n")
    print("| stage | GFLOPs/image | steps | seconds/image | reference seconds | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    totals = [0.0, 0.0, 0.0]
    for number, stage in enumerate(pipe.cascade.stages):
        with torch.device("meta"):
            flops = image_flops(build_stage(stage.config))

        def sample(number: int = number, image: torch.Tensor | None = previous) -> torch.Tensor:
            return pipe(
                prompt_embeds=embeds,
                negative_prompt_embeds=null,
                seed=0,
                image=image,
                start_stage=number,
                stop_after=number,
                output_type="pt",
            ).images

        work = reference(flops * batch, pipe.device)
        previous = sample()
        work()
        timed = [(seconds(sample, pipe.device), seconds(work, pipe.device)) for _ in range(runs)]
        ours, plain = (statistics.median(column) / batch for column in zip(*timed, strict=True))
        ratio = statistics.median(a / b for a, b in timed)
        print(
            f"| {stage.config.name} | {flops / 1e9:.1f} | {stage.config.sampling.steps} | {ours:.2f} | {plain:.2f} | "
            f"{ratio:.2f} |",
            flush=True,
        )
        totals = [totals[0] + flops, totals[1] + ours, totals[2] + plain]
    flops, ours, plain = totals
    print(f"| prompt to image | {flops / 1e9:.1f} | | {ours:.2f} | {plain:.2f} | {ours / plain:.2f} |")


if __name__ == "__main__":
    tyro.cli(main)
