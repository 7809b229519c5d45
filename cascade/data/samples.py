"""The training set: sample number i of a source, as a pure function of (seed, i).

Which item it shows, which of its captions, whether that is dropped, the crop and the flip follow from the two numbers,
and so does what takes the place of an item that cannot be used. B samples of a batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cascade.data.order import item_of
from cascade.data.skipped import NothingUsable, Skipped
from cascade.data.source import ImageSource, Unusable
from cascade.data.transform import Transform
from conditioning.embedding_cache import EmbeddingCache
from conditioning.text import TextEmbedding

PATIENCE = 100  # unusable items for one sample, before giving up


@dataclass(frozen=True)
class Sample:
    """image: uint8, C H W. dropped: whether the stage is to see no caption. name: the item's. skipped: the items that
    were tried before it, the first of them the one whose turn it was."""

    index: int
    image: Tensor
    caption: str
    dropped: bool
    name: str
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Batch:
    """images: uint8, B C H W. dropped: bool, B. text: the captions' embedding, if there is a cache of them."""

    indices: list[int]
    images: Tensor
    captions: list[str]
    dropped: Tensor
    names: list[str]
    skipped: list[tuple[Skipped, ...]]
    text: TextEmbedding | None = None

    def __len__(self) -> int:
        return len(self.indices)


class TrainingSet(Dataset[Sample]):
    """An endless map-style dataset: any index from 0 has a sample.

    text_dropout: the share of captions that is dropped (Imagen: 0.1).
    """

    def __init__(self, source: ImageSource, transform: Transform, *, seed: int = 0, text_dropout: float = 0.0) -> None:
        if len(source) == 0:
            raise ValueError("the source has no images; check its path")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout must be in [0, 1], got {text_dropout}")
        self.source, self.transform, self.seed, self.text_dropout = source, transform, seed, text_dropout

    def __getitem__(self, index: int) -> Sample:
        """Raises NothingUsable if PATIENCE items in a row cannot be used."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, index], spawn_key=(1,)))
        dropped = bool(rng.random() < self.text_dropout)
        skipped: list[Skipped] = []
        item = item_of(index, len(self.source), self.seed)
        while len(skipped) < PATIENCE:
            try:
                captions = self.source.captions(item)
                caption = captions[rng.integers(len(captions))]
                image = self.transform(self.source.image(item), rng)
                return Sample(index, image, caption, dropped, self.source.name(item), tuple(skipped))
            except Unusable as error:
                skipped.append(Skipped(self.source.name(item), str(error)))
            item = int(rng.integers(len(self.source)))
        raise NothingUsable(f"{PATIENCE} items in a row cannot be used", skipped)


def collate(samples: Sequence[Sample], cache: EmbeddingCache | None = None) -> Batch:
    captions = [sample.caption for sample in samples]
    return Batch(
        indices=[sample.index for sample in samples],
        images=torch.stack([sample.image for sample in samples]),
        captions=captions,
        dropped=torch.tensor([sample.dropped for sample in samples]),
        names=[sample.name for sample in samples],
        skipped=[sample.skipped for sample in samples],
        text=None if cache is None else cache(captions),
    )
