"""Thresholding the predicted clean image at every step (Imagen, section 2.3). An x0 becomes an x0."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascade.denoiser import Denoise, Denoised


def quantile_of_magnitude(x: Tensor, fraction: float) -> Tensor:
    """The ``fraction`` quantile of |x| per image, (B,), linearly interpolated: torch.quantile's value at a small part
    of its cost, since only the largest values have to be found.
    """
    flat = x.abs().flatten(1)
    position = fraction * (flat.shape[1] - 1)
    below = math.floor(position)
    top = flat.topk(flat.shape[1] - below, dim=1).values  # descending: top[-1] has rank `below`
    low, high = top[:, -1], top[:, -2] if top.shape[1] > 1 else top[:, -1]
    return low + (high - low) * (position - below)


def static(x0: Tensor) -> Tensor:
    """Clip to [-1, 1]."""
    return x0.clamp(-1, 1)


def dynamic(percentile: float = 0.995, max_value: float | None = None) -> Callable[[Tensor], Tensor]:
    """s = max(1, percentile of |x0|) per image, at most ``max_value`` (IF), then clip(x0, -s, s) / s (Imagen, 2.3)."""
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile is a fraction in (0, 1], got {percentile}")
    if max_value is not None and not max_value >= 1:  # written so that NaN fails
        raise ValueError(f"max_value must be at least 1, got {max_value}")
    if max_value == 1:
        return static

    def apply(x0: Tensor) -> Tensor:
        s = quantile_of_magnitude(x0, percentile).clamp(min=1, max=max_value)[:, None, None, None]
        return torch.clamp(x0, -s, s) / s

    return apply


@dataclass(frozen=True)
class Thresholding:
    """A stage's choice: "dynamic" (the default everywhere), "static" or "none"."""

    kind: Literal["dynamic", "static", "none"] = "dynamic"
    percentile: float = 0.995
    max_value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("dynamic", "static", "none"):
            raise ValueError(f'thresholding must be "dynamic", "static" or "none", got {self.kind!r}')
        dynamic(self.percentile, self.max_value)

    def function(self) -> Callable[[Tensor], Tensor] | None:
        """x0 -> x0, or None."""
        if self.kind == "dynamic":
            return dynamic(self.percentile, self.max_value)
        return static if self.kind == "static" else None


def threshold(denoise: Denoise, function: Callable[[Tensor], Tensor] | None) -> Denoise:
    """A denoiser whose x0 is thresholded; its variance stays."""
    if function is None:
        return denoise

    def thresholded(z: Tensor, logsnr: float) -> Denoised:
        x0, variance_fraction = denoise(z, logsnr)
        return Denoised(function(x0), variance_fraction)

    return thresholded
