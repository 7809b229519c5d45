"""Tiny networks with random weights for the tests, and everything that they are conditioned on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cascade.networks.base import DiffusionNetwork
from cascade.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from cascade.networks.unet import UNet, UNetConfig
from conditioning.text import TextEmbedding

UNET: dict[str, Any] = {
    "width": 32,
    "multipliers": (1, 2),
    "blocks": (1, 1),
    "attention_levels": (1,),
    "embedding_width": 32,
    "head_channels": 32,
    "text_width": 16,
}
EFFICIENT: dict[str, Any] = {
    "width": 32,
    "multipliers": (1, 2),
    "blocks": (1, 1),
    "embedding_width": 32,
    "heads": 2,
    "text_width": 16,
    "in_channels": 6,
}


def randomized(module):
    """Output layers start at zero, where everything would agree with everything."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.eval()


def new(kind: str, **changes: Any) -> UNet | EfficientUNet:
    if kind == "unet":
        return UNet(UNetConfig(**UNET | changes))
    return EfficientUNet(EfficientUNetConfig(**EFFICIENT | changes))


def network(kind: str, **changes: Any) -> UNet | EfficientUNet:
    return randomized(new(kind, **changes))


def text(*lengths: int, width: int = 16) -> TextEmbedding:
    """One prompt per length, padded to the longest."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return TextEmbedding(torch.randn(len(lengths), max(lengths), width), mask)


def inputs(network: DiffusionNetwork, batch: int = 2, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    """Everything that the network is conditioned on."""
    config = network.config
    return {
        "x": torch.randn(batch, config.in_channels, *size),
        "level": torch.full((batch,), 300.0),
        "text": None if network.text_width is None else text(*range(3, 3 + batch)),
        "augmentation": torch.full((batch,), 100.0) if network.augmented else None,
        "label": None if network.classes is None else torch.arange(batch),
    }


@torch.no_grad()
def run(network: DiffusionNetwork, x: Tensor, level: Tensor, text: Any, augmentation: Any, label: Any) -> Tensor:
    tokens, mask = (None, None) if text is None else (text.tokens, text.mask)
    condition = network.embed_condition(len(x), tokens, mask, augmentation, label)
    features = None if text is None else network.text_features(tokens, mask)
    return network(x, network.paired_modulations(level, condition), features)
