"""How fast training pictures come from each kind of source, beside what one would otherwise read it with.

    python benchmarks/data.py [--peer-folder DIR] [--sides 64 256] [--photos 400]

JPEGs of 512 px and more, some 60 KB each, in a folder with metadata.csv and in tar shards, and renders of the toybox;
from the file to a uint8 array of side x side pixels and its caption, in random order, in one process. Loaders take
turns, some pictures each. What is compared is what they do in a second of the processor's time: in training it is the
processor that is short, and a busy machine changes it less than the clock. "arrays" only copies pictures of just that
size, without making captions: no loader can be faster. Hugging Face datasets and webdataset need an environment of
their own, which is made if it is not there.
"""

from __future__ import annotations

import csv
import io
import statistics
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import tyro
from environment import environment, other_environment
from PIL import Image
from turns import Worker, ratio, take_turns

from cascade.data.toybox.rendered import render_collection

SCENES = 64


def photo(number: int, side: int = 512) -> bytes:
    """Smooth shapes with fine grain, which compress as photographs do."""
    rng = np.random.default_rng(number)
    size = (side + int(rng.integers(200)), side)
    shapes = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_photos(folder: Path, count: int) -> None:
    """``count`` of them, twenty of them different: folder/photos and folder/shards, four of these."""
    files = [photo(number) for number in range(20)]
    photos, shards = folder / "photos", folder / "shards"
    photos.mkdir()
    shards.mkdir()
    with (photos / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file_name", "text"])
        for number in range(count):
            (photos / f"{number:06d}.jpg").write_bytes(files[number % 20])
            lines.writerow([f"{number:06d}.jpg", f"photo number {number}"])
    for shard in range(4):
        with tarfile.open(shards / f"{shard:04d}.tar", "w") as tar:
            for number in range(shard, count, 4):
                members = {"jpg": files[number % 20], "txt": f"photo number {number}".encode()}
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def main(
    peer_folder: Path = Path("runs/data-libraries"),
    sides: tuple[int, ...] = (64, 256),
    photos: int = 400,
    count: int = 50,
    turns: int = 7,
) -> None:
    """Print the table.

    Args:
        peer_folder: The environment of the other libraries; made if it is not there.
        sides: Of the pictures, in px.
        photos: How many there are.
        count: Pictures at a turn.
        turns: Of each loader, of which medians are shown.
    """
    python = other_environment(peer_folder, "pillow", "datasets==5.2.0", "webdataset==1.0.2")
    print(f"{environment()}\n\n{count} pictures at a turn, {turns} turns; medians.\n")
    print("| source | side | loader | pictures/s | pictures/s of CPU | Cascade's CPU rate |")
    print("|---|---:|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_photos(folder, photos)
        for side in sides:
            toybox = folder / f"toybox-{side}"
            render_collection(toybox, seed=0, count=SCENES, size=side, workers=1)
            compare("folder", folder / "photos", ("pillow", "imagefolder"), python, side, count, turns)
            compare("tar", folder / "shards", ("webdataset",), python, side, count, turns)
            compare("toybox", toybox, ("arrays",), python, side, count, turns)


def compare(source: str, path: Path, others: tuple[str, ...], python: Path, side: int, count: int, turns: int) -> None:
    """Print a source's lines."""
    settings = {"path": str(path), "side": side, "count": count}
    ours = Worker("pictures", settings | {"loader": "cascade"})
    workers = {"Cascade": ours} | {name: Worker("pictures", settings | {"loader": name}, python) for name in others}
    take_turns(workers.values(), turns, warmup=1)
    for name, worker in workers.items():
        rates = [count / statistics.median(seconds) for seconds in (worker.wall, worker.cpu)]
        gain = "" if worker is ours else f"{ratio(worker.cpu, ours.cpu):.2f} x"
        print(f"| {source} | {side} | {name} | {rates[0]:.0f} | {rates[1]:.0f} | {gain} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
