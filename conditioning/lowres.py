"""The low-resolution image a super-resolution stage is conditioned on: resizing and conditioning augmentation.

Images are B C H W float32 in [-1, 1]. Both training and sampling call these same functions on images of that range, so
augmented conditioning has the same statistics in both.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad


def downsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased reduction to (height, width): each cell's mean where the ratio is whole, else filtered bicubic."""
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    if height % size[0] == 0 and width % size[1] == 0:
        return interpolate(image, size, mode="area")
    return interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)


def upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic enlargement to (height, width), clipped to the image range it may overshoot (SR3, section 2)."""
    return interpolate(image, size, mode="bicubic", align_corners=False).clamp(-1, 1)


def augment(image: Tensor, logsnr: Tensor, noise: Tensor) -> Tensor:
    """Conditioning augmentation: alpha x + sigma noise at a level per image, (B,) (CDM, 4.2; Imagen, alg. 1)."""
    alpha, sigma = logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()
    return alpha[:, None, None, None] * image + sigma[:, None, None, None] * noise


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation in pixels per image, (B,); a 3 x 3 kernel as in CDM (section 4.3), 0
    leaves an image as it is.
    """
    if (sigma < 0).any():
        raise ValueError(f"blur sigma must not be negative, got {sigma.min().item()}")
    batch, channels, height, width = image.shape
    side = torch.exp(-0.5 / sigma.clamp(min=1e-6) ** 2)  # the weight of a neighbour relative to the centre's
    kernel = torch.stack([side, torch.ones_like(side), side], dim=1)  # B 3
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    weight = (kernel[:, :, None] * kernel[:, None, :]).repeat_interleave(channels, dim=0)[:, None]  # BC 1 3 3
    padded = pad(image, (1, 1, 1, 1), mode="replicate").reshape(1, batch * channels, height + 2, width + 2)
    return conv2d(padded, weight.to(image.dtype), groups=batch * channels).view_as(image)
