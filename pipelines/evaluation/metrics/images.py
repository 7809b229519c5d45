"""From image files to features, a batch at a time.

B images, H W pixels, D features. Images are RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from pipelines.images import to_tensor

if TYPE_CHECKING:
    from pipelines.evaluation.metrics.extractors import Features

THREADS = 4


def resize(images: Tensor, side: int) -> Tensor:
    """B 3 H W -> B 3 side side, bicubic and antialiased, as Pillow does it on floats.

    Neither rounded nor clipped. Without antialiasing, features tell of the resizing rather than of the images (Parmar
    et al. 2022, "On aliased resizing"); figures compare with those of clean-fid, not with those of pytorch-fid.
    """
    if images.shape[-2:] == (side, side):
        return images
    return torch.nn.functional.interpolate(images, (side, side), mode="bicubic", antialias=True)


def read_image(path: Path) -> Tensor:
    """3 H W. Raises ValueError naming a file that is no image."""
    return to_tensor(_open(path))[0]


def read_square(path: Path, side: int | None = None) -> Tensor:
    """3 side side: the middle square of the image, resized; None leaves its size."""
    image = _open(path)
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    if side not in (None, edge):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return to_tensor(image)[0]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert("RGBA" if image.has_transparency_data else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is no image that can be read ({error})") from None


def shorter_side(path: Path) -> int:
    """In pixels, from the file's head alone. Raises ValueError naming a file that is no image."""
    try:
        with Image.open(path) as image:
            return min(image.size)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is no image that can be read ({error})") from None


def batches(paths: Sequence[Path], read: Callable[[Path], Tensor], batch_size: int) -> Iterator[Tensor]:
    """B 3 H W, in the order of the paths; a batch is read by threads while the one before is worked on."""
    remaining = iter(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = [pool.submit(read, path) for path in islice(remaining, batch_size)]
        while ahead:
            images = torch.stack([future.result() for future in ahead])
            ahead = [pool.submit(read, path) for path in islice(remaining, batch_size)]
            yield images


@torch.no_grad()
def extract(
    features: Features,
    paths: Sequence[Path],
    *,
    side: int | None = None,
    batch_size: int = 32,
    progress: str | None = None,
) -> Tensor:
    """N D float32 on the CPU, of the middle square of each image, at `side` px (None: as it is, all of one size).

    progress: the name of a bar to show.
    """
    found = []
    with tqdm(total=len(paths), desc=progress, unit="image", disable=progress is None) as bar:
        for images in batches(paths, partial(read_square, side=side), batch_size):
            found.append(features(images).float().cpu())
            bar.update(len(images))
    return torch.cat(found)
