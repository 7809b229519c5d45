"""A collection of scenes rendered beforehand: a training source that costs a disk read instead of a ray cast."""

from __future__ import annotations

import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascade.data.toybox.captions import caption
from cascade.data.toybox.render import render
from cascade.data.toybox.scene import Scene, sample_scene

SHARD = 1024  # scenes per file
RENDER_PIXELS = 1 << 20  # rendered at a time


def _paths(folder: Path, shard: int) -> tuple[Path, Path]:
    return folder / f"images-{shard:05d}.npy", folder / f"scenes-{shard:05d}.jsonl"


def _render_shard(folder: Path, seed: int, count: int, size: int, device: str, shard: int) -> None:
    """Write one shard; the images come last, under their own name only when whole: a file that is there is whole."""
    images, records = _paths(folder, shard)
    scenes = [sample_scene(seed, i) for i in range(shard * SHARD, min(count, (shard + 1) * SHARD))]
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
    images = _paths(folder, shard)[0]
    return len(np.load(images, mmap_mode="r")) if images.exists() else 0


def render_collection(
    folder: Path, *, seed: int, count: int, size: int, device: str = "cpu", workers: int | None = None
) -> None:
    """Render scenes 0 .. count - 1 of collection ``seed`` at ``size`` px into ``folder``, but no shard that is there.

    On the CPU the shards are spread over ``workers`` processes (all cores by default). Raises ValueError if the folder
    holds scenes of another seed, or of a world that has changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = _paths(folder, 0)[1]
    if first.exists() and first.read_text().partition("\n")[0] != sample_scene(seed, 0).to_json():
        raise ValueError(
            f"{folder} holds scenes of another seed, or of an earlier toybox; remove it, or choose another"
        )
    shards = [
        shard for shard in range(-(-count // SHARD)) if _scenes_there(folder, shard) < min(SHARD, count - shard * SHARD)
    ]
    job = partial(_render_shard, folder, seed, count, size, device)
    processes = min(workers or os.cpu_count() or 1, len(shards))
    if device != "cpu" or processes <= 1:
        for shard in shards:
            job(shard)
        return
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        for _ in pool.imap_unordered(job, shards):
            pass


class RenderedToybox:
    """The source in ``folder``: square images of the collection's size, or random crops of ``crop`` px of them."""

    def __init__(self, folder: Path, *, crop: int | None = None) -> None:
        files = sorted(Path(folder).glob("images-*.npy"))
        if not files:
            raise FileNotFoundError(f"no rendered scenes in {folder}; make them with render_collection")
        self.shards = [np.load(file, mmap_mode="r") for file in files]
        self.records = [_paths(Path(folder), int(file.stem[-5:]))[1].read_text().splitlines() for file in files]
        self.size = self.shards[0].shape[-1]
        if crop is not None and not 0 < crop <= self.size:
            raise ValueError(f"crop must be within the images' {self.size} px, got {crop}")
        self.crop = crop or self.size

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def scene(self, index: int) -> Scene:
        return Scene.from_json(self.records[index // SHARD][index % SHARD])

    def images(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        """B 3 h w float32 in [-1, 1]."""
        out = np.empty((len(indices), 3, self.crop, self.crop), np.uint8)
        for row, index in enumerate(indices):
            y, x = rng.integers(self.size - self.crop + 1, size=2)
            out[row] = self.shards[index // SHARD][index % SHARD, :, y : y + self.crop, x : x + self.crop]
        return torch.from_numpy(out).float() / 127.5 - 1

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        scenes = [self.scene(int(index)) for index in indices]
        return [caption(scene.description, rng, scene.ground) for scene in scenes]
