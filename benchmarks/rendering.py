"""How fast is the toybox drawn, and what bounds it?

    python benchmarks/rendering.py [--scenes 96] [--device cpu]
    python benchmarks/rendering.py --picture docs/images/toybox.jpg     only draws scenes of every kind

Prints scenes a second at several sizes on one thread (or on the GPU), for crops of 1024 px renders, for drawing scenes
at random, and the share of the time that each part of the renderer takes.
"""

import cProfile
import pstats
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from environment import environment

from cascade.data.toybox import render, sample_scene
from cascade.data.toybox.description import KINDS
from pipelines.images import from_tensor, grid

REPEATS = 3
PARTS = {
    "shadows": "transmittance",
    "first hits": "interval",
    "into unit coordinates": "to_unit",
    "shading": "shade",
    "materials": "texture",
    "floor occlusion": "ambient_occlusion",
    "backdrop": "backdrop",
    "packing": "pack",
}


def fastest(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of REPEATS calls, after one to warm up."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def contact_sheet(path: Path, each: int = 8, size: int = 160) -> None:
    """`each` scenes of every kind, a kind a row."""
    scenes = [sample_scene(1, index, {kind: 1.0}) for kind in KINDS for index in range(each)]
    grid(from_tensor(render(scenes, size, supersample=3), "pil"), each).save(path, quality=90)


def main(scenes: int = 96, device: str = "cpu", picture: Path | None = None) -> None:
    """Print the tables.

    Args:
        scenes: How many are rendered at a time; fewer at larger sizes.
        device: Where.
        picture: Write a contact sheet there instead.
    """
    torch.set_num_threads(1)
    if picture is not None:
        contact_sheet(picture)
        return
    print(environment())
    some = [sample_scene(0, index) for index in range(scenes)]
    print("\n| what | scenes/s |\n|---|---:|")
    print(f"| sampling | {scenes / fastest(lambda: [sample_scene(0, i) for i in range(scenes)], 'cpu'):.0f} |")
    for size in (64, 256, 1024):
        count = max(1, scenes * 64**2 // size**2)
        seconds = fastest(lambda count=count, size=size: render(some[:count], size, device=device), device)
        print(f"| {size} px | {count / seconds:.1f} |")
    crop = fastest(lambda: render(some[:8], 1024, crop=(480, 480, 64, 64), device=device), device)
    print(f"| 64 px crop of 1024 px | {8 / crop:.1f} |", flush=True)

    profile = cProfile.Profile()
    profile.runcall(render, some, 64, device=device)
    stats = pstats.Stats(profile).stats  # pyright: ignore[reportAttributeAccessIssue]
    total = max(entry[3] for entry in stats.values())
    print("\n| part of a 64 px render (parts overlap) | share |\n|---|---:|")
    for name, function in PARTS.items():
        seconds = sum(entry[3] for key, entry in stats.items() if key[2] == function and "toybox" in key[0])
        print(f"| {name} (`{function}`) | {seconds / total:.0%} |")


if __name__ == "__main__":
    tyro.cli(main)
