"""CLIP's two towers, through transformers; and the CLIP score, how well an image fits its caption.

B images or texts, H W pixels, D width of the space that both towers map to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.evaluation.metrics.images import resize
from pipelines.evaluation.metrics.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import CLIPModel

MODEL = "openai/clip-vit-large-patch14"  # Imagen's, section 4.1
MEAN, SD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of RGB in [0, 1], CLIP's


class Clip:
    """model: transformers' CLIPModel. tokenizer: its tokenizer, called with a list of texts."""

    def __init__(self, model: CLIPModel, tokenizer: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config: Any = model.config
        self.width: int = config.projection_dim  # D
        self.side: int = config.vision_config.image_size  # px
        self.window: int = config.text_config.max_position_embeddings  # tokens

    @staticmethod
    def from_pretrained(model: str | Path = MODEL) -> Clip:
        """From a local folder or a hub id, in float32. Raises WeightsError naming what is missing, and the remedy."""
        from transformers import CLIPModel, CLIPTokenizer

        network, folder = load_pretrained(CLIPModel, model)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(f"no tokenizer in {folder}; expected tokenizer.json, or vocab.json and merges.txt")
        return Clip(network, CLIPTokenizer.from_pretrained(folder, local_files_only=True))

    def to(self, device: str | torch.device) -> Clip:
        torch.nn.Module.to(self.model, device)
        return self

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """B 3 H W in [-1, 1] -> B D, not normalized. They are resized whole to CLIP's square: crop before."""
        mean, sd = (torch.tensor(values, device=self.model.device)[:, None, None] for values in (MEAN, SD))
        pixels = (resize(images.to(self.model.device), self.side) + 1) / 2
        seen = self.model.vision_model(pixel_values=(pixels - mean) / sd)
        return self.model.visual_projection(seen.pooler_output)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B D, not normalized. A text is cut where CLIP's window ends: 77 tokens, in the published models."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.window, return_tensors="pt")
        read = self.model.text_model(**tokens.to(self.model.device))
        return self.model.text_projection(read.pooler_output)

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """The CLIP score of each image with its text, B: 100 times their cosine, 0 where that is negative.

        Hessel et al. 2021, eq. 1, with the factor 100 that is usual now in place of 2.5.
        """
        return 100 * torch.cosine_similarity(self.images(images), self.texts(texts)).clamp(min=0)
