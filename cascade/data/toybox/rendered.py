"""Collections of scenes rendered beforehand: training then pays a disk read instead of a ray cast."""

from __future__ import annotations

import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cascade.data.toybox.render import render
from cascade.data.toybox.scene import sample_scene

SHARD = 1024  # scenes per file
COMPARED = 20  # scenes of a folder, with those that are wanted
RENDER_PIXELS = 1 << 20  # rendered at a time


def shard_files(folder: Path, shard: int) -> tuple[Path, Path]:
    """Where a shard has its images (N 3 H W uint8, .npy) and its scenes (a line of JSON each)."""
    return folder / f"images-{shard:05d}.npy", folder / f"scenes-{shard:05d}.jsonl"


def _render_shard(folder: Path, seed: int, count: int, size: int, made: float | None, device: str, shard: int) -> None:
    """Write one shard; the images come last, under their own name only when whole: a file that is there is whole."""
    images, records = shard_files(folder, shard)
    scenes = [sample_scene(seed, i, made=made) for i in range(shard * SHARD, min(count, (shard + 1) * SHARD))]
    pixels = np.empty((len(scenes), 3, size, size), np.uint8)
    at_once = max(1, RENDER_PIXELS // size**2)
    for i in range(0, len(scenes), at_once):
        drawn = render(scenes[i : i + at_once], size, device=device)
        pixels[i : i + at_once] = ((drawn + 1) * 127.5).round().byte().cpu().numpy()
    records.write_text("".join(scene.to_json() + "\n" for scene in scenes))
    fresh = images.with_suffix(f".{os.getpid()}.part")
    with fresh.open("wb") as file:
        np.save(file, pixels)
    fresh.rename(images)


def _scenes_there(folder: Path, shard: int) -> int:
    images = shard_files(folder, shard)[0]
    return len(np.load(images, mmap_mode="r")) if images.exists() else 0


def render_collection(
    folder: Path,
    *,
    seed: int,
    count: int,
    size: int,
    made: float | None = None,
    device: str = "cpu",
    workers: int | None = None,
) -> None:
    """Render scenes 0 .. count - 1 of collection ``seed`` at ``size`` px into ``folder``, but no shard that is there;
    ``made`` as for `sample_description`.

    On the CPU the shards are spread over ``workers`` processes (all cores by default). Raises ValueError if the folder
    holds scenes of another seed, or of a world that has changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = shard_files(folder, 0)[1]
    if first.exists():
        lines = first.read_text().splitlines()[:COMPARED]
        if lines != [sample_scene(seed, number, made=made).to_json() for number in range(len(lines))]:
            raise ValueError(
                f"{folder} holds scenes of another seed, of other materials or of an earlier toybox; remove it, or "
                "choose another"
            )
    shards = [
        shard for shard in range(-(-count // SHARD)) if _scenes_there(folder, shard) < min(SHARD, count - shard * SHARD)
    ]
    job = partial(_render_shard, folder, seed, count, size, made, device)
    processes = min(workers or os.cpu_count() or 1, len(shards))
    if device != "cpu" or processes <= 1:
        for shard in shards:
            job(shard)
        return
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        for _ in pool.imap_unordered(job, shards):
            pass
