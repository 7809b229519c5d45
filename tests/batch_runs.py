"""Run folders, as the tests of batches look at them."""

import json
from contextlib import contextmanager

import numpy as np
from PIL import Image

PROMPTS = ["a red car", "a blue ball on a red house", "a green house", "a red ball", "a blue car on a red ball"]


@contextmanager
def sampling_watched(monkeypatch, pipe, seen):
    """Before a stage draws, `seen(stage number, seeds)`."""
    sample = type(pipe.cascade).sample

    def watched(self, seeds, *sizes, first=0, **options):
        seen(first, list(seeds))
        return sample(self, seeds, *sizes, first=first, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.cascade), "sample", watched)
        yield


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def manifest_lines(folder):
    return [json.loads(line) for path in folder.glob("manifest-*.jsonl") for line in path.read_text().splitlines()]


def closeness(one, other):
    """The share of pixels within 1/255 of each other."""
    pairs = [(pixels(one / "images" / name), pixels(other / "images" / name)) for name in sorted(contents(one))]
    return np.mean([np.abs(a.astype(int) - b) <= 1 for a, b in pairs])


def errors(folder):
    return [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
