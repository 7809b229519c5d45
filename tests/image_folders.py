"""Folders of images for the tests of data: good ones, and every kind of bad one."""

import io
import json

import numpy as np
from PIL import Image


def picture(number=0, size=(40, 48)):
    """(height, width) pixels, smooth, and of another colour for each number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return small.resize(size[::-1], Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb():
    """A PNG of a few bytes that says it has 400 million pixels."""
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def damaged():
    """Files that no one can train on, by what is wrong with them."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return {
        "cut.jpg": encoded(noise, "JPEG")[:2000],
        "cut.png": encoded(noise)[:5000],
        "cut.webp": encoded(noise, "WEBP")[:2000],
        "empty.jpg": b"",
        "text.png": b"this is no picture",
        "page.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n",
        "bomb.png": bomb(),
        "small.png": encoded(picture(size=(7, 90))),
    }


def make_folder(folder, good, bad=0):
    """``good`` captioned images and ``bad`` faults of all kinds in turn, named in metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(good):
        (folder / f"{i:04d}.png").write_bytes(encoded(picture(i)))
        lines.append({"file_name": f"{i:04d}.png", "text": f"picture number {i}"})
    kinds = list(damaged().items())
    for i in range(bad):
        kind = i % (len(kinds) + 3)
        if kind < len(kinds):
            name = f"bad-{i:04d}-{kinds[kind][0]}"
            (folder / name).write_bytes(kinds[kind][1])
            lines.append({"file_name": name, "text": "a bad picture"})
        elif kind == len(kinds):
            lines.append({"file_name": f"missing-{i:04d}.png", "text": "a picture that is not there"})
        else:
            name = f"bad-{i:04d}-caption.png"
            (folder / name).write_bytes(encoded(picture(i)))
            if kind == len(kinds) + 1:
                lines.append({"file_name": name, "text": "  "})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
