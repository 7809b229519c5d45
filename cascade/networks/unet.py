"""The ADM family of U-Nets: Imagen's base, SR3, CDM, DeepFloyd IF.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from cascade.networks.attention import Attention, TextFeatures
from cascade.networks.base import DiffusionNetwork
from cascade.networks.blocks import ACTIVATIONS, Activation, ResBlock, group_norm, zeroed


@dataclass(frozen=True)
class UNetConfig:
    """Every axis on which the presets differ.

    in_channels counts the low-resolution image where there is one (6); out_channels is 6 where the variance is learned.
    width is the channel count of level 0 and multipliers[i] scales it at level i, which runs at 1/2^i of the resolution
    (after ``patch``); blocks[i] residual blocks stand there, with attention if i is in attention_levels. ``patch`` p
    folds p x p pixels into channels before the first convolution and unfolds them after the last, which puts a small
    network's work where a CPU is fast (simple diffusion, section 3.3). ``groups`` is that of the group norms: one over
    few channels takes a picture's colours away.

    attention: "joint" attends to the image and to text, "text" to text alone. Text is read ``text_width`` wide for its
    pooled vector; for attention it is first projected to ``text_projection`` channels, if given, and in every layer
    normalized by ``text_norm``: "layer" each token by itself, "group" in 32 groups over all tokens, for text whose
    padding is kept. ``pool_heads`` pools by attention of as many heads (CLIP), None by learned scores (Imagen).
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    attention_levels: tuple[int, ...]
    embedding_width: int
    in_channels: int = 3
    out_channels: int = 3
    head_channels: int = 64
    text_width: int | None = None
    classes: int | None = None
    augmented: bool = False
    patch: int = 1
    groups: int = 32
    dropout: float = 0.0
    residual_scale: float = 1.0
    attention: Literal["joint", "text"] = "joint"
    attention_bias: bool = False
    text_projection: int | None = None
    text_norm: Literal["layer", "group"] = "layer"
    pool_heads: int | None = None
    activation: Activation = "silu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if len(self.multipliers) != len(self.blocks) or not self.blocks:
            raise ValueError(f"need one block count per level, got {self.blocks} for multipliers {self.multipliers}")
        if any(level not in range(len(self.blocks)) for level in self.attention_levels):
            raise ValueError(
                f"attention_levels {self.attention_levels} names a level outside 0..{len(self.blocks) - 1}"
            )
        if self.width % 32 and self.width not in (8, 16):
            raise ValueError(f"width must be a multiple of 32 (the group norm's groups), or 8 or 16, got {self.width}")
        if self.groups < 1:
            raise ValueError(f"the norms need at least 1 group, got {self.groups}")
        for name, value, choices in (
            ("attention", self.attention, ("joint", "text")),
            ("text_norm", self.text_norm, ("layer", "group")),
            ("activation", self.activation, tuple(ACTIVATIONS)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.text_width is None and (self.attention == "text" or self.text_projection or self.pool_heads):
            raise ValueError("attention to text alone, text_projection and pool_heads need a text_width")
        if self.text_norm == "group" and (self.text_channels or 0) % 32:
            raise ValueError(f"a group norm over text needs a multiple of 32 channels, got {self.text_channels}")

    @property
    def text_channels(self) -> int | None:
        """The channels of the text that attention sees."""
        return self.text_projection or self.text_width

    @property
    def divisor(self) -> int:
        """Image sides must be divisible by this."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class Layer(nn.Module):
    """A residual block and, on the levels that have it, attention."""

    def __init__(
        self, config: UNetConfig, channels: int, out: int, *, resample: str | None = None, attention: bool
    ) -> None:
        super().__init__()
        self.block = ResBlock(
            channels,
            out,
            config.embedding_width,
            resample=resample,
            dropout=config.dropout,
            residual_scale=config.residual_scale,
            activation=config.activation,
            groups=config.groups,
            norm_eps=config.norm_eps,
        )
        self.attention = None
        if attention:
            self.attention = Attention(
                out,
                max(1, out // config.head_channels),
                out,
                config.text_channels,
                cross_only=config.attention == "text",
                text_norm=config.text_norm,
                bias=config.attention_bias,
                groups=config.groups,
            )


class UNet(DiffusionNetwork):
    """ADM's U-Net (Dhariwal & Nichol 2021) with Imagen's text conditioning.

    Every layer's output on the way down is a skip; on the way up each level has one layer more than on the way down and
    takes the skips in reverse.
    """

    down: Sequence[Layer]
    middle: Sequence[Layer]
    up: Sequence[Layer]

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(
            frequencies=config.width,
            embedding_width=config.embedding_width,
            text_width=config.text_width,
            classes=config.classes,
            augmented=config.augmented,
            text_projection=config.text_projection,
            pool_heads=config.pool_heads,
            activation=config.activation,
        )
        self.config = config
        fold = config.patch**2
        widths = [config.width * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.stem = nn.Conv2d(config.in_channels * fold, widths[0], 3, padding=1)

        channels, skips, down, up = widths[0], [widths[0]], [], []
        for level, width in enumerate(widths):
            attention = level in config.attention_levels
            for _ in range(config.blocks[level]):
                down.append(Layer(config, channels, width, attention=attention))
                skips.append(channels := width)
            if level < last:
                down.append(Layer(config, channels, channels, resample="down", attention=False))
                skips.append(channels)
        middle = [
            Layer(config, channels, channels, attention=bool(config.attention_levels)),
            Layer(config, channels, channels, attention=False),
        ]
        for level in reversed(range(len(widths))):
            attention = level in config.attention_levels
            for _ in range(config.blocks[level] + 1):
                up.append(Layer(config, channels + skips.pop(), widths[level], attention=attention))
                channels = widths[level]
            if level > 0:
                up.append(Layer(config, channels, channels, resample="up", attention=False))

        # A ModuleList is a sequence of what it was made from, which its type does not say.
        self.down = nn.ModuleList(down)  # pyright: ignore[reportAttributeAccessIssue]
        self.middle = nn.ModuleList(middle)  # pyright: ignore[reportAttributeAccessIssue]
        self.up = nn.ModuleList(up)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_norm = group_norm(channels, config.groups, config.norm_eps)
        self.out = zeroed(nn.Conv2d(channels, config.out_channels * fold, 3, padding=1))

    def forward(self, x: Tensor, modulations: Sequence[Tensor], text: TextFeatures | None) -> Tensor:
        modulation = iter(modulations)
        keys_values = repeat(None) if text is None else iter(text.keys_values)
        mask = None if text is None else text.mask

        def run(layer: Layer, x: Tensor) -> Tensor:
            x = layer.block(x, next(modulation))
            return x if layer.attention is None else layer.attention(x, next(keys_values), mask)

        x = self.stem(pixel_unshuffle(x, self.config.patch))
        skips = [x]
        for layer in self.down:
            x = run(layer, x)
            skips.append(x)
        for layer in self.middle:
            x = run(layer, x)
        for layer in self.up:
            if layer.block.resample is None:
                x = torch.cat([x, skips.pop()], dim=1)
            x = run(layer, x)
        return pixel_shuffle(self.out(self.activation(self.out_norm(x))), self.config.patch)
