"""The exponential moving average of a model's weights, which is what is shipped and sampled."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cascade.training.distributed import full, local


class EMA:
    """``weights`` holds the averages by parameter name, in float32 and spread over processes as the model's are.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, so that the average forgets its start quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """(averages, weights) of this process."""
        parameters = dict(self.model.named_parameters())
        return [local(w) for w in self.weights.values()], [local(parameters[n].detach()) for n in self.weights]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(*self._pairs(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights, until the end of the block."""
        averages, weights = self._pairs()
        kept = [weight.clone() for weight in weights]
        try:
            torch._foreach_copy_(weights, averages)
            yield
        finally:
            torch._foreach_copy_(weights, kept)

    def copy_to_model(self) -> None:
        """The model has the average as its weights, for good."""
        averages, weights = self._pairs()
        torch._foreach_copy_(weights, averages)

    def gathered(self) -> dict[str, Tensor]:
        """The whole averages by name; all processes have to ask together."""
        return {name: full(weight) for name, weight in self.weights.items()}
