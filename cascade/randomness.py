"""One seed per image: what is drawn for image k depends on its own seed, not on the batch, device, or other stages."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The order is part of every image's identity: append, never reorder.
PURPOSES = ("start", "augmentation", "steps", "inpainting")


class Draws:
    """The random numbers of one stage for some images. Every purpose has its own stream, SeedSequence([seed, stage,
    purpose]) from which successive calls go on; all draws are made on the CPU in float32.
    """

    def __init__(self, seeds: Sequence[int], stage: int) -> None:
        self.seeds, self.stage = list(seeds), stage
        self._streams: dict[str, list[torch.Generator]] = {}

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """B x shape standard normal numbers."""
        if purpose not in self._streams:
            self._streams[purpose] = [self._stream(seed, PURPOSES.index(purpose)) for seed in self.seeds]
        return torch.stack([torch.randn(shape, generator=stream) for stream in self._streams[purpose]])

    def _stream(self, seed: int, purpose: int) -> torch.Generator:
        state = np.random.SeedSequence([seed, self.stage, purpose]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) & (2**63 - 1))
