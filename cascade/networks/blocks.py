"""The convolutional blocks both networks are made of, and the embedding that conditions them.

Shapes: B batch, C channels, H W pixels, E embedding width. A block that is conditioned is `Modulated`: it owns the
linear map from the embedding to its own numbers, and takes those numbers, not the embedding, in `forward`. So
everything that depends on the noise level can be computed for all steps of a sampling loop at once.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, interpolate, silu

Activation = Literal["silu", "gelu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu": gelu}  # gelu: the exact one, by erf


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """The convolution with weights and bias at zero, so that a new block starts as the identity (ADM, section 3)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """torch's own, kept from what it is slow at: in bfloat16 on a CPU, a map of under 1024 pixels whose channels lie
    side by side takes it ten times as long as one in torch's usual layout, so it is brought there and back.
    """

    def forward(self, input: Tensor) -> Tensor:
        """B C H W."""
        if input.shape[-2] * input.shape[-1] >= 1024 or input.is_contiguous():
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels: int, groups: int = 32, eps: float = 1e-5) -> GroupNorm:
    """A norm over ``groups`` groups, or as many of them as divide the channels (for SR3's 16 and 48 channels, 16)."""
    return GroupNorm(math.gcd(groups, channels), channels, eps)


class Modulated(nn.Module):
    """A block conditioned by ``modulation``: embedding E -> the numbers its forward takes."""

    modulation: nn.Linear


class ResBlock(Modulated):
    """BigGAN's residual block as ADM uses it: norm, act, (resample,) conv, norm, scale and shift, act, conv; plus skip.

    ``resample`` "down" averages 2x2, "up" doubles by nearest neighbour, on both branches. The sum is multiplied by
    ``residual_scale`` (SR3: 1/sqrt(2)).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        resample: str | None = None,
        dropout: float = 0.0,
        residual_scale: float = 1.0,
        activation: Activation = "silu",
        groups: int = 32,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.residual_scale = residual_scale
        self.activation = ACTIVATIONS[activation]
        self.norm1 = group_norm(channels, groups, norm_eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding_width, 2 * out_channels)
        self.norm2 = group_norm(out_channels, groups, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return avg_pool2d(x, 2)
        return interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x B C H W, modulation B 2C' -> B C' H' W'."""
        h = self.conv1(self._resampled(self.activation(self.norm1(x))))
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(self.dropout(self.activation(torch.addcmul(shift, self.norm2(h), 1 + scale))))
        out = self.skip(self._resampled(x)) + h
        return out if self.residual_scale == 1.0 else out * self.residual_scale


class NoiseEmbedding(nn.Module):
    """Sinusoids of one number per image, then two linear layers (DDPM; ADM). The number is expected in [0, 1000]."""

    def __init__(self, frequencies: int, embedding_width: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.frequencies = frequencies
        self.activation = ACTIVATIONS[activation]
        self.linear1 = nn.Linear(2 * (frequencies // 2), embedding_width)
        self.linear2 = nn.Linear(embedding_width, embedding_width)

    def forward(self, value: Tensor) -> Tensor:
        """(B,) -> B E; sinusoids are computed in float32 whatever the weights' dtype."""
        half = self.frequencies // 2
        rate = torch.exp(torch.arange(half, device=value.device) * (-math.log(10_000) / half))
        angle = value.float()[:, None] * rate
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.linear1.weight.dtype)
        return self.linear2(self.activation(self.linear1(wave)))
