"""Training pictures from a source of Cascade's, or as other libraries give them, some on every request.

Its settings: {"loader": a function below, "path": ..., "side": 64, "count": 50}. The pictures are reduced until they
cover side x side pixels and cut in the middle; each comes with its caption. The other loaders need their libraries,
not Cascade, and a Python that has them. They resize as torchvision does by default: bilinear, antialiased.
"""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from workers.on_request import Finished, Requests

Picture = tuple[np.ndarray, str]  # uint8, 3 H W, and the caption


def prepared(image: Image.Image, side: int) -> np.ndarray:
    image = image.convert("RGB")
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def order(count: int) -> Iterator[int]:
    """Random permutations, without end."""
    rng = np.random.default_rng(0)
    while True:
        yield from rng.permutation(count).tolist()


def cascade(path: Path, side: int) -> Iterator[Picture]:
    """Whatever source is behind the path."""
    from cascade.data.samples import TrainingSet
    from cascade.data.source import open_source
    from cascade.data.transform import Transform

    data = TrainingSet(open_source(path), Transform((side, side)))
    samples = (data[number] for number in itertools.count())
    return ((sample.image.numpy(), sample.caption) for sample in samples)


def pillow(path: Path, side: int) -> Iterator[Picture]:
    """The dataset that one writes oneself: metadata.csv in memory, Image.open."""
    with (path / "metadata.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for index in order(len(lines)):
        with Image.open(path / lines[index]["file_name"]) as image:
            yield prepared(image, side), lines[index]["text"]


def arrays(path: Path, side: int) -> Iterator[Picture]:
    """A stored array of pictures of just that size, mapped into memory, and captions in a list."""
    images = np.load(next(path.glob("images-*.npy")), mmap_mode="r")
    captions = ["a caption"] * len(images)
    assert images.shape[2:] == (side, side)
    for index in order(len(images)):
        yield images[index].copy(), captions[index]


def imagefolder(path: Path, side: int) -> Iterator[Picture]:
    """Hugging Face datasets."""
    import datasets  # pyright: ignore[reportMissingImports]

    data = datasets.load_dataset("imagefolder", data_dir=str(path), split="train", cache_dir=str(path.parent / "cache"))
    for index in order(len(data)):
        row = data[index]
        yield prepared(row["image"], side), row["text"]


def webdataset(path: Path, side: int) -> Iterator[Picture]:
    """WebDataset reads shards from end to end and shuffles what it holds."""
    import webdataset as wds  # pyright: ignore[reportMissingImports]

    shards = [str(shard) for shard in sorted(path.glob("*.tar"))]
    data = wds.WebDataset(shards, shardshuffle=False).shuffle(100).decode("pil").to_tuple("jpg", "txt").repeat()
    return ((prepared(image, side), text) for image, text in data)


LOADERS: dict[str, Callable[[Path, int], Iterator[Picture]]] = {
    loader.__name__: loader for loader in (cascade, pillow, arrays, imagefolder, webdataset)
}


def main(settings: dict[str, Any]) -> None:
    side = settings["side"]
    pictures = LOADERS[settings["loader"]](Path(settings["path"]), side)
    image, caption = next(pictures)  # an index that is made at the first start is no part of what follows
    if image.shape != (3, side, side) or image.dtype != np.uint8 or not caption:
        raise ValueError(f"the first picture is {image.shape}, {image.dtype}, its caption {caption!r}")
    requests = Requests()
    requests.answer()
    with suppress(Finished):
        while True:
            requests.wait()
            for _ in range(settings["count"]):
                next(pictures)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
