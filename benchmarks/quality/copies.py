"""Are samples copies? How near each is to a training scene, beside how near it is to a scene nobody trained on."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.drawing import Setting, draw
from benchmarks.quality.stored import IMAGES, store
from cascade.data.toybox import render, sample_scene
from cascade.training.toybox import UNSEEN_SEED, Shipped, scenes_seed
from conditioning.lowres import upsample
from pipelines.evaluation.detector import Detector
from pipelines.images import from_tensor, grid
from weights.hub import EMBEDDED

COLLECTION = 4096  # scenes on either side
SHOWN = 8
CATEGORIES = ("colours", "counting", "positional")


def measure(setting: Setting) -> None:
    """Distances in the detector's features from the base's samples to the first scenes of the last training run, and
    to as many held-out ones; beside them the same distances from other held-out renders, which cannot be copies."""
    pipe, detector = setting.pipeline(), Detector.from_pretrained()
    prompts = setting.suite(*CATEGORIES)
    samples = torch.cat([own.cpu() for own in draw(pipe, prompts, setting.images, stop_after=0)])
    fresh = render([sample_scene(UNSEEN_SEED, COLLECTION + i) for i in range(len(samples))], samples.shape[-1])
    # Earlier runs may have been of an earlier world.
    runs = Shipped(Path(setting.model or EMBEDDED)).history("base-64")
    last = scenes_seed("base-64", runs[-2]["samples_seen"] if len(runs) > 1 else 0)
    seen, unseen = (features_of(detector, seed) for seed in (last, UNSEEN_SEED))
    distances = {}
    for name, images in (("samples", samples), ("fresh renders", fresh)):
        own = features(detector, images)
        distances[name] = {"training": nearest(own, seen)[0].tolist(), "held out": nearest(own, unseen)[0].tolist()}
    store("copies", {"scenes": COLLECTION, "distances": distances})
    closest = np.argsort(distances["samples"]["training"])[:SHOWN]
    twins = nearest(features(detector, samples[closest]), seen)[1].tolist()
    scenes = render([sample_scene(last, twin) for twin in twins], samples.shape[-1])
    page = torch.cat([samples[closest], scenes])
    grid(from_tensor(upsample(page, (128, 128)).clamp(-1, 1), "pil"), SHOWN).save(IMAGES / "copies.jpg", quality=90)


def features_of(detector: Detector, seed: int) -> Tensor:
    """Of the first scenes of a collection, rendered at 64 px."""
    parts = []
    for start in range(0, COLLECTION, 256):
        scenes = [sample_scene(seed, start + i) for i in range(256)]
        parts.append(features(detector, render(scenes, 64)))
    return torch.cat(parts)


def features(detector: Detector, images: Tensor) -> Tensor:
    """N D, of unit length, of images N 3 64 64 in [-1, 1]."""
    parts = [detector.features(upsample(part, (256, 256)).clamp(-1, 1)) for part in images.split(64)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def nearest(features: Tensor, collection: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of each row to the nearest row of the collection, and its number."""
    found = torch.cdist(features, collection).min(dim=1)
    return found.values, found.indices
