"""Image files, whatever they hold, as plain RGB."""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cascade.data.source import Unusable

# Formats that are pictures and nothing else: EPS, for one, is a program, and Pillow would have it run.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif")
)
SPARE = 2  # a JPEG is decoded at an 8th, a quarter or half of its size, but at least this many times what is wanted


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode(data: bytes | Image.Image, wanted: tuple[int, int] | None = None) -> Image.Image:
    """An RGB picture, upright: turned as EXIF says, alpha laid over white, the first frame of an animation.

    wanted: (height, width) that the picture will be reduced to; a JPEG several times as large is not decoded in full.
    Raises Unusable if the file is broken, no picture, or of more pixels than Pillow takes for safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_formats()) if isinstance(data, bytes) else data
            if wanted is not None:
                image.draft(None, (SPARE * max(wanted), SPARE * max(wanted)))
            return _rgb(_upright(image))
    except Unusable:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Unusable(f"too large: {error}") from None
    except UnidentifiedImageError:
        raise Unusable("the file is empty" if data == b"" else f"no picture: none of {', '.join(_formats())}") from None
    except Exception as error:  # on broken files Pillow's readers raise nearly everything
        raise Unusable(f"a broken picture: {error or type(error).__name__}") from None


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing of how the picture stands
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits of grey, in "I" stored in 32
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise Unusable(f"grey values from {grey.min()} to {grey.max()}; expected 8 or 16 bits a channel")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Unusable("floating-point pixels, whose range the file does not say; save it with 8 or 16 bits a channel")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
