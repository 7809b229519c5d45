"""Imagen's Efficient U-Net for super-resolution (Imagen, section 2.3 and appendix B.1).

Against ADM's: parameters sit at the low resolutions, skips are scaled by 1/sqrt(2), each down block strides before its
convolutions and each up block upsamples after them, so little runs at full resolution.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

from cascade.networks.attention import Attention, TextFeatures
from cascade.networks.base import DiffusionNetwork
from cascade.networks.blocks import GroupNorm, Modulated, zeroed

SKIP_SCALE = 2**-0.5


@dataclass(frozen=True)
class EfficientUNetConfig:
    """Level i has width * multipliers[i] channels and blocks[i] blocks, at 1/2^(i+1) of the size (after ``patch``).

    attention, on the lowest level only: "joint" attends to the image and to text, "text" to text alone (the 1024 px
    stage, which then is convolutional in the image), None to nothing (SR without text at any size). ``patch`` as in
    `UNetConfig`.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    embedding_width: int
    attention: Literal["joint", "text"] | None = "joint"
    in_channels: int = 6
    out_channels: int = 3
    heads: int = 8
    text_width: int | None = None
    augmented: bool = True
    patch: int = 1
    groups: int = 32

    def __post_init__(self) -> None:
        if len(self.multipliers) != len(self.blocks) or not self.blocks:
            raise ValueError(f"need one block count per level, got {self.blocks} for multipliers {self.multipliers}")
        if self.attention not in ("joint", "text", None):
            raise ValueError(f'attention must be "joint", "text" or null, got {self.attention!r}')
        if self.attention == "text" and self.text_width is None:
            raise ValueError('attention "text" needs a text_width')
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"width must be a multiple of the norms' {self.groups} groups, got {self.width}")

    @property
    def divisor(self) -> int:
        """Image sides must be divisible by this."""
        return self.patch * 2 ** len(self.multipliers)


class ConvBlock(nn.Module):
    """Two rounds of group norm, swish and a 3 x 3 convolution beside a 1 x 1 convolution (Imagen, figure A.27)."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return self.skip(x) + self.conv2(silu(self.norm2(h)))


class Level(Modulated):
    """The body of a down or an up block: add the embedding, residual blocks, attention (Imagen, figures A.28, A.29)."""

    def __init__(self, config: EfficientUNetConfig, channels: int, out: int, blocks: int, *, attention: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.embedding_width, channels)
        self.blocks = nn.ModuleList(ConvBlock(channels if i == 0 else out, out, config.groups) for i in range(blocks))
        self.attention = None
        if attention and config.attention is not None:
            self.attention = Attention(
                out,
                config.heads,
                2 * out,
                config.text_width,
                cross_only=config.attention == "text",
                groups=config.groups,
            )

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Everything but the attention."""
        x = x + modulation[:, :, None, None]
        for block in self.blocks:
            x = block(x)
        return x


class EfficientUNet(DiffusionNetwork):
    """A U-Net with one skip per level and one around all levels, so that full-resolution detail has a short way out."""

    down: Sequence[Level]
    up: Sequence[Level]

    def __init__(self, config: EfficientUNetConfig) -> None:
        super().__init__(
            frequencies=config.width,
            embedding_width=config.embedding_width,
            text_width=config.text_width,
            classes=None,
            augmented=config.augmented,
        )
        self.config = config
        fold = config.patch**2
        widths = [config.width * multiplier for multiplier in config.multipliers]
        entries = [config.width, *widths[:-1]]  # what enters level i from above
        last = len(widths) - 1
        levels = range(len(widths))
        self.stem = nn.Conv2d(config.in_channels * fold, config.width, 3, padding=1)
        self.stride = nn.ModuleList(nn.Conv2d(entries[i], widths[i], 3, stride=2, padding=1) for i in levels)
        # A ModuleList is a sequence of what it was made from, which its type does not say.
        self.down = nn.ModuleList(  # pyright: ignore[reportAttributeAccessIssue]
            Level(config, widths[i], widths[i], config.blocks[i], attention=i == last) for i in levels
        )
        self.up = nn.ModuleList(  # pyright: ignore[reportAttributeAccessIssue]
            Level(config, 2 * widths[i], widths[i], config.blocks[i], attention=i == last) for i in reversed(levels)
        )
        self.upsample = nn.ModuleList(nn.Conv2d(widths[i], entries[i], 3, padding=1) for i in reversed(levels))
        self.out_norm = GroupNorm(config.groups, config.width)
        self.out = zeroed(nn.Conv2d(config.width, config.out_channels * fold, 3, padding=1))

    def forward(self, x: Tensor, modulations: Sequence[Tensor], text: TextFeatures | None) -> Tensor:
        modulation = iter(modulations)
        keys_values = repeat(None) if text is None else iter(text.keys_values)
        mask = None if text is None else text.mask

        def run(level: Level, x: Tensor) -> Tensor:
            x = level(x, next(modulation))
            return x if level.attention is None else level.attention(x, next(keys_values), mask)

        x = stem = self.stem(pixel_unshuffle(x, self.config.patch))
        skips = []
        for stride, level in zip(self.stride, self.down, strict=True):
            x = run(level, stride(x))
            skips.append(x)
        for level, conv in zip(self.up, self.upsample, strict=True):
            x = run(level, torch.cat([x, skips.pop() * SKIP_SCALE], dim=1))
            x = conv(interpolate(x, scale_factor=2, mode="nearest"))
        x = (x + stem) * SKIP_SCALE
        return pixel_shuffle(self.out(silu(self.out_norm(x))), self.config.patch)
