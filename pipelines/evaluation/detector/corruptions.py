"""Ways to spoil a picture, as imperfect generation and storage do: blur, noise, JPEG, few pixels, a warp.

B 3 H W, RGB in [-1, 1]; pure functions of their arguments.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """By a Gaussian of standard deviation sigma (B) in pixels; 0 leaves an image as it is."""
    batch, channels, height, width = images.shape
    radius = min(int(3 * float(sigma.max())) + 1, min(height, width) - 1)
    steps = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None]  # BC 1 K
    x = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]  # 1 BC h w
    x = F.conv2d(x, kernel[:, :, None], groups=batch * channels)
    return F.conv2d(x, kernel[..., None], groups=batch * channels).view_as(images)


def noise(images: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """White, of standard deviation sigma (B)."""
    drawn = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return (images + sigma.view(-1, 1, 1, 1).to(images) * drawn).clamp(-1, 1)


def jpeg(images: Tensor, qualities: Sequence[int]) -> Tensor:
    """Through a JPEG file of Pillow's quality 1 to 95, one for each image."""
    out = torch.empty_like(images)
    for i, (image, quality) in enumerate(zip(images, qualities, strict=True)):
        pixels = ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
        out[i] = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 127.5 - 1
    return out


def coarsen(images: Tensor, size: int) -> Tensor:
    """Down to size px by averaging over areas, and bicubically up again."""
    small = F.interpolate(images, size, mode="area")
    return F.interpolate(small, images.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)


def smooth_noise(count: int, channels: int, cells: int, side: int, generator: torch.Generator) -> Tensor:
    """count channels side side: of unit variance, wavy on the scale of side / cells pixels."""
    grain = torch.randn(count, channels, cells, cells, generator=generator)
    field = F.interpolate(grain, side, mode="bicubic", align_corners=True)
    return field / field.std(dim=(1, 2, 3), keepdim=True)


def warp(images: Tensor, away: Tensor) -> Tensor:
    """Each pixel from the place `away` (B 2 H W, x right and y down, in pixels) from its own."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    at = torch.stack([x, y], dim=-1) + away.permute(0, 2, 3, 1) * torch.tensor([2 / (width - 1), 2 / (height - 1)])
    return F.grid_sample(images, at, mode="bilinear", padding_mode="border", align_corners=True)
