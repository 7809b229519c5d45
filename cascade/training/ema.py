"""The exponential moving average of a model's weights, which is what is shipped and sampled."""

import copy

import torch
from torch import nn


class EMA:
    """``model`` holds the average, in float32 on the trained model's device.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, so that the average forgets its start quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
