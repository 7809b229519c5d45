"""Rendered scenes as a source of images and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade.data.toybox.captions import caption
from cascade.data.toybox.rendered import SHARD, RenderedToybox

RETELLINGS = 8


class ToyboxSource:
    """The scenes in a folder that `render_collection` wrote; RETELLINGS captions of each, always the same."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._scenes = RenderedToybox(self.folder)

    def __len__(self) -> int:
        return len(self._scenes)

    def name(self, index: int) -> str:
        return f"scene {index}"

    def captions(self, index: int) -> list[str]:
        scene = self._scenes.scene(index)
        rng = np.random.default_rng([index, RETELLINGS])
        return [caption(scene.description, rng, scene.ground) for _ in range(RETELLINGS)]

    def image(self, index: int) -> Image.Image:
        pixels = self._scenes.shards[index // SHARD][index % SHARD]  # 3 H W
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a worker maps the files itself; pickled, the pictures would all be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])
