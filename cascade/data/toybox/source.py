"""Rendered scenes as a source of images and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade.data.toybox.captions import caption
from cascade.data.toybox.rendered import shard_files
from cascade.data.toybox.scene import Scene

RETELLINGS = 8


class ToyboxSource:
    """The scenes in a folder that `render_collection` wrote; RETELLINGS captions of each, always the same."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        images = sorted(self.folder.glob("images-*.npy"))
        if not images:
            raise FileNotFoundError(f"no rendered scenes in {folder}; make them with render_collection")
        self._shards = [np.load(file, mmap_mode="r") for file in images]
        self._scenes = [shard_files(self.folder, i)[1].read_text().splitlines() for i in range(len(images))]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    def scene(self, index: int) -> Scene:
        shard, row = self._place(index)
        return Scene.from_json(self._scenes[shard][row])

    def name(self, index: int) -> str:
        return f"scene {index}"

    def captions(self, index: int) -> list[str]:
        scene = self.scene(index)
        rng = np.random.default_rng([index, RETELLINGS])
        return [caption(scene.description, rng, scene.ground) for _ in range(RETELLINGS)]

    def image(self, index: int) -> Image.Image:
        shard, row = self._place(index)
        pixels = self._shards[shard][row]  # 3 H W
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def _place(self, index: int) -> tuple[int, int]:
        return divmod(index, len(self._shards[0]))  # only the last may be shorter

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a worker maps the files itself; pickled, the pictures would all be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])
