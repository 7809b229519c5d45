"""Images at the edge: PIL, numpy and torch in; PIL, numpy and torch out. Inside they are B 3 H W float32 in [-1, 1]."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OutputType = Literal["pil", "np", "pt"]
OUTPUT_TYPES = ("pil", "np", "pt")


def to_tensor(image: Any, name: str = "image") -> Tensor:
    """One image or several of one size -> B 3 H W float32 in [-1, 1].

    Takes a PIL image (alpha is laid over white), a numpy array H W C of uint8 or of floats in [0, 1], a torch tensor
    C H W or B C H W of floats in [0, 1], or a list of these. Raises TypeError or ValueError naming what is wrong.
    """
    if isinstance(image, Sequence) and not isinstance(image, str | bytes):
        if not image:
            raise ValueError(f"{name} is an empty list; give at least one image")
        parts = [to_tensor(part, f"{name}[{i}]") for i, part in enumerate(image)]
        sizes = {tuple(part.shape[-2:]) for part in parts}
        if len(sizes) > 1:
            raise ValueError(
                f"{name} holds images of different sizes {sorted(sizes)}; resize them to one, or call once per size"
            )
        return torch.cat(parts)
    if isinstance(image, Image.Image):
        return _from_pil(image)[None]
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"{name} is an array of shape {image.shape}; expected H x W x 3")
        if image.dtype == np.uint8:
            return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        return to_tensor(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), name)
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(f"{name} is a tensor of shape {tuple(image.shape)}; expected 3 x H x W or B x 3 x H x W")
        if not image.is_floating_point():
            raise ValueError(f"{name} is a tensor of {image.dtype}; expected floats in [0, 1]")
        low, high = image.min().item(), image.max().item()
        if not (low >= 0 and high <= 1):  # written so that NaN fails
            hint = "; for [-1, 1] give (image + 1) / 2" if low >= -1 and high <= 1 else ""
            raise ValueError(f"{name} has values from {low:g} to {high:g}; expected [0, 1]{hint}")
        return image.detach().cpu().float().reshape(-1, *image.shape[-3:]) * 2 - 1
    raise TypeError(f"{name} is a {type(image).__name__}; expected a PIL image, a numpy array or a torch tensor")


def _from_pil(image: Image.Image) -> Tensor:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def mask_to_tensor(mask: Any) -> Tensor:
    """A mask, white (1) where to draw -> B 1 H W of 0 and 1. Takes what `to_tensor` takes, grey or RGB."""
    if isinstance(mask, Image.Image):
        mask = mask.convert("L").convert("RGB")
    elif isinstance(mask, np.ndarray) and mask.ndim == 2:
        mask = np.repeat(mask[:, :, None], 3, axis=2)
    elif isinstance(mask, Tensor) and mask.ndim == 2:
        mask = mask.expand(3, -1, -1)
    return (to_tensor(mask, "mask_image").mean(dim=1, keepdim=True) > 0).float()


def from_tensor(images: Tensor, output_type: OutputType) -> Any:
    """B 3 H W in [-1, 1] -> a list of PIL images, an array B H W 3 of uint8, or a tensor B 3 H W in [0, 1]."""
    images = (images.float().clamp(-1, 1) + 1) / 2
    if output_type == "pt":
        return images
    array = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else [Image.fromarray(one) for one in array]


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """The images in rows, as square as their number allows unless ``columns`` says."""
    if not images:
        raise ValueError("a grid needs at least one image")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    width, height = images[0].size
    page = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * width, i // columns * height))
    return page
