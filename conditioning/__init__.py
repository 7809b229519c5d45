"""What steers a stage: text embeddings and the low-resolution image. A leaf: it imports torch, nothing of ours.

The names below are fetched on first use, so that `import conditioning` alone costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conditioning.lowres import augment, blur, downsample, upsample
    from conditioning.text import TextEmbedding, TextEncoder
    from conditioning.tokenizer import Tokenizer

__all__ = ["TextEmbedding", "TextEncoder", "Tokenizer", "augment", "blur", "downsample", "upsample"]

_HOME = {
    "TextEmbedding": "conditioning.text",
    "TextEncoder": "conditioning.text",
    "Tokenizer": "conditioning.tokenizer",
    "augment": "conditioning.lowres",
    "blur": "conditioning.lowres",
    "downsample": "conditioning.lowres",
    "upsample": "conditioning.lowres",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'conditioning' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
