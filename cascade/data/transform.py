"""From a picture of any size to the pixels a stage trains on: reduce, crop, flip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import embedding_bag

from cascade.data.decode import decode
from cascade.data.source import Unusable


@dataclass(frozen=True)
class Transform:
    """Reduce a picture until it just covers ``resolution`` (height, width), and cut ``crop`` (height, width) out of it.

    crop: None is the whole resolution. Super-resolution trains on less: at a resolution of 1024, a crop of 256 is a
    sixteenth of the picture. position: of the crop. flip: mirror half of the pictures, left to right; off, since
    captions speak of left and right. small: "skip" refuses a picture smaller than the resolution, "enlarge" makes it
    fit, bicubically, and soft.
    """

    resolution: tuple[int, int]
    crop: tuple[int, int] | None = None
    position: Literal["center", "random"] = "center"
    flip: bool = False
    small: Literal["skip", "enlarge"] = "skip"

    def __post_init__(self) -> None:
        if min(self.resolution) < 1:
            raise ValueError(f"resolution is (height, width) in pixels, got {self.resolution}")
        if any(not 0 < cut <= whole for cut, whole in zip(self.size, self.resolution, strict=True)):
            raise ValueError(f"crop must lie within the resolution {self.resolution}, got {self.crop}")
        for name, value, allowed in (
            ("position", self.position, ("center", "random")),
            ("small", self.small, ("skip", "enlarge")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(allowed)}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        return self.crop or self.resolution

    def __call__(self, data: bytes | Image.Image, rng: np.random.Generator) -> Tensor:
        """uint8, 3 H W. Always draws three numbers. Raises Unusable if the picture is broken or too small."""
        v, h, mirror = rng.random(3)
        image = decode(data, self.resolution)
        width, height = image.size
        scale = max(self.resolution[0] / height, self.resolution[1] / width)
        if scale > 1 and self.small == "skip":
            raise Unusable(
                f"{width} x {height} px is smaller than the resolution {self.resolution[1]} x {self.resolution[0]}"
            )
        whole = (max(self.resolution[0], round(height * scale)), max(self.resolution[1], round(width * scale)))
        if self.position == "center":
            v = h = 0.5
        top = int(v * (whole[0] - self.size[0] + (self.position == "random")))
        left = int(h * (whole[1] - self.size[1] + (self.position == "random")))
        if scale > 1:
            large = image.resize((whole[1], whole[0]), Image.Resampling.BICUBIC)
            pixels = np.asarray(large)[top : top + self.size[0], left : left + self.size[1]]
        else:
            pixels = reduce(image, whole, (top, left, *self.size))
        if self.flip and mirror < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def reduce(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Area resampling: every pixel is the mean of what it covers, fractions of pixels included. uint8, H W 3.

    size: (height, width) of the whole reduced picture, box: (top, left, height, width) of what is wanted of it. From a
    ratio of 16 on, whole blocks of pixels are averaged first. (Pillow's BOX filter takes a pixel or leaves it: between
    whole ratios it is off by a hundred levels where neighbours differ.)
    """
    top, left, height, width = box
    ratios = [image.height / size[0], image.width / size[1]]
    whole = all(ratio.is_integer() for ratio in ratios)
    blocks = [int(ratio) if whole else max(1, int(ratio / 8)) for ratio in ratios]
    extents = (image.height / blocks[0], image.width / blocks[1])  # the last block may be a part of one
    pixels = np.asarray(image if blocks == [1, 1] else image.reduce((blocks[1], blocks[0])))
    columns, across = _covered(extents[1] / size[1], left, width, pixels.shape[1])
    rows, down = _covered(extents[0] / size[0], top, height, pixels.shape[0])
    pixels = _average(pixels[rows, columns], down)  # height, columns, 3
    pixels = _average(pixels.swapaxes(0, 1), across).swapaxes(0, 1)
    return pixels if pixels.dtype == np.uint8 else (pixels + 0.5).astype(np.uint8)


def _covered(ratio: float, start: int, count: int, length: int) -> tuple[slice, np.ndarray]:
    """The pixels (of ``length``) under those start .. start + count - 1 of a reduced line, and (low, high) of each of
    these, counted from the first."""
    edges = np.arange(start, start + count + 1) * ratio
    first, last = int(edges[0]), min(length, int(np.ceil(edges[-1])))
    return slice(first, last), np.stack([edges[:-1], edges[1:]]) - first


def _average(pixels: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Along the first axis, the mean of the pixels between each (low, high)."""
    low, high = covered[..., None]
    if len(pixels) == len(low):
        return pixels
    taps = low.astype(np.int64) + np.arange(int(np.ceil((high - low).max())) + 1)
    shares = (np.minimum(taps + 1, high) - np.maximum(taps, low)).clip(0) / (high - low)
    sums = embedding_bag(  # what it is: sums of weighted rows, in one pass over them
        torch.from_numpy(taps.clip(max=len(pixels) - 1)),
        torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).flatten(1),
        mode="sum",
        per_sample_weights=torch.from_numpy(shares.astype(np.float32)),
    )
    return sums.numpy().reshape(-1, *pixels.shape[1:])
