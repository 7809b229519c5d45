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
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import tyro
from deepfloyd_contest import Contest, Network, unet_config
from deepfloyd_undone import UNDONE
from environment import environment


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
