"""Adafactor: Adam's second moments as a row and a column per matrix (Shazeer and Stern 2018, algorithms 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cascade.training.distributed import full, is_sharded, like


class Adafactor(torch.optim.Optimizer):
    """Without momentum, with update clipping at 1, the decay 1 - t^-0.8, and steps relative to a parameter's own size.

    Imagen trains its base with it, as it keeps hardly any state. torch.optim.Adafactor factors the last two dimensions,
    which of a convolution are 3 x 3 and would save a third; here they are the first two, output and input channels, and
    each tap of a kernel is a matrix of its own. Of a matrix the two optimizers make the same (a test holds them to it).
    """

    def __init__(self, groups: Iterable[Any], lr: float, *, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    size = _rms(parameter).clamp(min=1e-3)
                    state = self.state[parameter]
                    state["step"] = state.get("step", torch.zeros((), device=size.device)) + 1
                    scale = size * torch.rsqrt(state["step"]).clamp(max=group["lr"])
                    update = _whitened(parameter.grad, state)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update * (scale / _rms(update).clamp(min=1.0)).item())


def _whitened(gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The gradient over the root of its second moments, which are updated first (eps 1: float32's)."""
    tiny = torch.finfo(torch.float32).eps
    weight = float(state["step"] ** -0.8)
    square = gradient.square()
    if gradient.ndim < 2:
        moments = state.setdefault("variance", torch.zeros_like(gradient)).lerp_(square, weight)
        return gradient * moments.clamp(min=tiny * tiny).rsqrt()
    for name, mean in (("row", square.mean(1, keepdim=True)), ("column", square.mean(0, keepdim=True))):
        mean = full(mean)
        state[name] = state.get(name, torch.zeros_like(mean)).lerp(mean, weight)
    row, column = state["row"], state["column"]
    root = (row / row.mean(0, keepdim=True).clamp(min=tiny)).sqrt()
    if is_sharded(gradient):
        root, column = like(gradient, root), like(gradient, column.expand(gradient.shape).contiguous())
    return gradient / (root * column.sqrt()).clamp(min=tiny)


def _rms(tensor: Tensor) -> Tensor:
    return full(tensor.square().mean()).sqrt()
