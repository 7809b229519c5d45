"""What turns images into features.

`toybox` is always there; the others need weights, which Cascade does not ship. The tests hold the networks to a second
statement of what they compute, with random weights; with the published weights nobody has compared figures yet.

B images, H W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipelines.evaluation.metrics.clip import Clip
from pipelines.evaluation.metrics.images import resize
from pipelines.evaluation.metrics.inception import DIMENSIONS, SIDE, Inception
from pipelines.evaluation.metrics.pretrained import digest, load_pretrained

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
DINOV2_SIDE = 224  # px


class Features(Protocol):
    """B 3 H W in [-1, 1] -> B D; squares, of any size."""

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Extractor:
    """Features with a name; version: of the weights. Works on their device; see `Features` for the call."""

    name: str
    version: str
    dimensions: int
    network: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.device, torch.float32))


def open_features(name: str, device: str | torch.device = "cpu") -> Extractor:
    """toybox; inception:FILE; dinov2:FOLDER or dinov2:ID; clip:FOLDER or clip:ID, where ID is one of the hub.

    Raises ValueError naming what is wrong with the name or the weights.
    """
    kind, _, where = name.partition(":")
    if kind not in EXTRACTORS or bool(where) == (kind == "toybox"):
        raise ValueError(
            f"features {name!r}; expected toybox, inception:FILE, dinov2:FOLDER_OR_ID or clip:FOLDER_OR_ID"
        )
    network, weights, dimensions = EXTRACTORS[kind](where, torch.device(device))
    return Extractor(name, digest(weights), dimensions, network, torch.device(device))


Opened = tuple[Callable[[Tensor], Tensor], torch.nn.Module, int]


def _toybox(_: str, device: torch.device) -> Opened:
    """The toybox detector's, averaged over the picture: in its 4 x 4 parts there would be 1,792 of them.

    The mean and not the maximum: wrong colours, and blur, raise the Frechet distance of fresh renders more
    (`pytest -m slow tests/test_metrics_extractors.py -k maximum`). Most of a picture is ground: of these features, the
    distance tells drawn images from renders; precision and recall hardly do.
    """
    from pipelines.evaluation.detector import Detector

    detector = Detector.from_pretrained().to(device)
    channels = detector.config.coarse[0]
    return lambda images: detector.features(images).unflatten(1, (channels, -1)).mean(dim=2), detector, channels


def _inception(path: str, device: torch.device) -> Opened:
    """The last pooling layer's. FID and KID are distances of these."""
    network = Inception.from_file(path).to(device)
    return lambda images: network((resize(images, SIDE) + 1) * (127.5 / 128) - 1), network, DIMENSIONS


def _dinov2(model: str, device: torch.device) -> Opened:
    """The class token's, at 224 px; closer to what people see than Inception's (Stein et al. 2023)."""
    from transformers import Dinov2Model

    network, _ = load_pretrained(Dinov2Model, model)
    torch.nn.Module.to(network, device)
    mean, sd = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_SD))

    def features(images: Tensor) -> Tensor:
        pixels = (resize(images, DINOV2_SIDE) + 1) / 2
        return network(pixel_values=(pixels - mean) / sd).pooler_output

    return features, network, network.config.hidden_size


def _clip(model: str, device: torch.device) -> Opened:
    """CLIP's image tower's, in the space it shares with the text, not normalized."""
    clip = Clip.from_pretrained(model).to(device)
    return clip.images, clip.model, clip.width


EXTRACTORS = {"toybox": _toybox, "inception": _inception, "dinov2": _dinov2, "clip": _clip}
